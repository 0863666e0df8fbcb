// TLS by OpenSSL: which certificates a server shows and a client trusts, read again when their files change, and the
// session of one connection on a non-blocking socket. TLS 1.2 and 1.3, ALPN "http/1.1", of a client also "h2".
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/io.h"

struct ssl_st;
struct ssl_ctx_st;

namespace sluice::net {

// PEM files.
struct TlsFiles {
  enum class Role { kServer, kClient };
  Role role = Role::kClient;
  std::string certificate;  // with its chain; a client may have none
  std::string key;
  std::string key_password = {};  // of the key's file; empty: it has none
  // Of a client: whom it trusts besides the authorities of the system. Of a server: whose certificate a client must
  // have; none = clients need no certificate.
  std::vector<std::string> authorities = {};
};

enum class Alpn { kHttp1, kHttp2 };

// One connection's session. Loop thread only.
class TlsSession {
 public:
  TlsSession(ssl_ctx_st* context, int fd);  // of a server
  // Of a client, which checks that the certificate is one for `host`, a name or an address.
  TlsSession(ssl_ctx_st* context, int fd, const std::string& host, Alpn alpn);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // One step: kOk when it is done; kWouldBlock until the socket is readable, or writable if wants_write(); kReset.
  Io handshake();
  bool established() const { return established_; }
  // The protocol that both sides agreed on, "h2" or "http/1.1"; empty where the other side does not know of that. Once
  // established.
  std::string_view protocol() const;
  // Up to `room` bytes: kOk, and then there may be more, whatever the socket says; kWouldBlock, kEnd after the other
  // side's close_notify; kReset otherwise, an end without one included, so that a cut answer is never taken for a whole
  // one.
  Io read(char* to, size_t room, size_t& n);
  // The last read() or handshake() that would block waits for the socket to take something.
  bool wants_write() const { return wants_write_; }
  // Takes what the socket accepts; kOk when all of it went out. After kWouldBlock the same bytes, and maybe more behind
  // them, must be offered again.
  Io write(std::span<iovec>& parts);
  // Tells the other side, once, that nothing more will come.
  void close_notify();

  // Why it failed, as OpenSSL says it; empty if the connection simply ended.
  const std::string& error() const { return error_; }
  // The other side sent an HTTP request instead of a handshake.
  bool got_plain_http() const { return got_plain_http_; }

 private:
  Io ended(int result);
  // A socket that takes nothing more may still hold the reason, which the other side sent before it closed. What else
  // it holds stays for read().
  void look_for_alert();

  ssl_st* const ssl_;
  bool established_ = false;
  bool broken_ = false;
  bool wants_write_ = false;
  bool got_plain_http_ = false;
  std::string error_;
};

// What the sessions of one side are made of. Any thread.
class TlsContext {
 public:
  // kNotFound, kInvalidArgument: names the file and what is wrong with it.
  static Result<std::shared_ptr<TlsContext>> load(TlsFiles files);
  // Reads the files again if one of them has changed since they were read last; true if what they hold is in use now.
  // If it cannot be used, that is the error, once, and what was in use stays. Sessions that exist are not affected.
  Result<bool> reload_if_changed();

  std::unique_ptr<TlsSession> accept(int fd) const;
  std::unique_ptr<TlsSession> connect(int fd, const std::string& host, Alpn alpn = Alpn::kHttp1) const;

  // For clients that were told nothing: the system's authorities, no certificate. Loaded when it is first asked for.
  static std::shared_ptr<TlsContext> of_system();

 private:
  explicit TlsContext(TlsFiles files) : files_(std::move(files)) {}
  std::shared_ptr<ssl_ctx_st> current() const;
  std::string fingerprint() const;

  const TlsFiles files_;
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<ssl_ctx_st> current_;
  std::string seen_;  // of the files, when they were read last
};

// Reads files again that have changed; says so in the log, also if what is there now cannot be used. `whose`: of a
// message, "clients". Any thread.
void reload_certificates(TlsContext& context, std::string_view whose);

}  // namespace sluice::net
