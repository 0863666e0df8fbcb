#include "net/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <boost/asio/ip/address.hpp>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/log.h"

namespace sluice::net {
namespace {

constexpr size_t kRecord = 16 * 1024;  // the largest there is
constexpr unsigned char kAlpn[] = "\x08http/1.1";
constexpr unsigned kAlpnSize = sizeof kAlpn - 1;
constexpr unsigned char kAlpnHttp2[] = "\x02h2";

int fd_of(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

// OpenSSL's own socket BIO writes without MSG_NOSIGNAL.
int bio_write(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::send(fd_of(bio), data, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(n);
}

int bio_read(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::recv(fd_of(bio), data, static_cast<size_t>(size), 0);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(n);
}

long bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

BIO* make_bio(int fd) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
    SLUICE_CHECK(m != nullptr, "OpenSSL has no memory");
    BIO_meth_set_write(m, bio_write);
    BIO_meth_set_read(m, bio_read);
    BIO_meth_set_ctrl(m, bio_control);
    return m;
  }();
  BIO* bio = BIO_new(method);
  SLUICE_CHECK(bio != nullptr, "OpenSSL has no memory");
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  BIO_set_init(bio, 1);
  return bio;
}

SSL* make_ssl(SSL_CTX* context, int fd) {
  SSL* ssl = SSL_new(context);
  SLUICE_CHECK(ssl != nullptr, "OpenSSL has no memory");
  BIO* bio = make_bio(fd);
  SSL_set_bio(ssl, bio, bio);
  return ssl;
}

std::string last_reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  if (reason != nullptr) return reason;
  return code == 0 ? "" : fmt::format("error {:x}", code);
}

int choose_alpn(SSL*, const unsigned char** out, unsigned char* size, const unsigned char* offered,
                unsigned offered_size, void*) {
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, size, kAlpn, kAlpnSize, offered, offered_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;  // HTTP/2 only
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

// Of the key's file; without one OpenSSL would ask on the terminal.
int give_password(char* to, int room, int, void* files) {
  if (files == nullptr) return -1;
  const std::string& password = static_cast<const TlsFiles*>(files)->key_password;
  if (password.empty() || password.size() > static_cast<size_t>(room)) return -1;
  std::copy(password.begin(), password.end(), to);
  return static_cast<int>(password.size());
}

Error bad_file(const std::string& path, std::string_view what) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) {
    return {ErrorCode::kNotFound, fmt::format("cannot read {} {}: {}", what, path, std::strerror(errno))};
  }
  return {ErrorCode::kInvalidArgument, fmt::format("{} is no {} in PEM form: {}", path, what, last_reason())};
}

Result<std::shared_ptr<SSL_CTX>> make_context(const TlsFiles& files) {
  const bool is_server = files.role == TlsFiles::Role::kServer;
  ERR_clear_error();
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method()), SSL_CTX_free);
  if (context == nullptr) return Error{ErrorCode::kInternal, fmt::format("OpenSSL: {}", last_reason())};
  SSL_CTX* raw = context.get();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_options(raw, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_read_ahead(raw, 1);  // a record costs one system call instead of two
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_default_passwd_cb(raw, give_password);
  SSL_CTX_set_default_passwd_cb_userdata(raw, const_cast<TlsFiles*>(&files));  // while the files are read
  if (!files.certificate.empty()) {
    if (SSL_CTX_use_certificate_chain_file(raw, files.certificate.c_str()) != 1) {
      return bad_file(files.certificate, "certificate");
    }
    if (SSL_CTX_use_PrivateKey_file(raw, files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
      if (ERR_GET_REASON(ERR_peek_last_error()) != X509_R_KEY_VALUES_MISMATCH)
        return bad_file(files.key, "private key");
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("the key {} does not belong to the certificate {}", files.key, files.certificate)};
    }
  }
  for (const std::string& authority : files.authorities) {
    if (SSL_CTX_load_verify_file(raw, authority.c_str()) != 1) return bad_file(authority, "certificate");
  }
  if (is_server) {
    SSL_CTX_set_alpn_select_cb(raw, choose_alpn, nullptr);
    if (!files.authorities.empty()) {
      SSL_CTX_set_verify(raw, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
      SSL_CTX_set_session_id_context(raw, kAlpn, kAlpnSize);
    }
  } else {
    SSL_CTX_set_default_verify_paths(raw);
    SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_alpn_protos(raw, kAlpn, kAlpnSize);
  }
  SSL_CTX_set_default_passwd_cb_userdata(raw, nullptr);
  return context;
}

}  // namespace

TlsSession::TlsSession(SSL_CTX* context, int fd) : ssl_(make_ssl(context, fd)) { SSL_set_accept_state(ssl_); }

TlsSession::TlsSession(SSL_CTX* context, int fd, const std::string& host, Alpn alpn) : ssl_(make_ssl(context, fd)) {
  SSL_set_connect_state(ssl_);
  if (alpn == Alpn::kHttp2) SSL_set_alpn_protos(ssl_, kAlpnHttp2, sizeof kAlpnHttp2 - 1);
  boost::system::error_code not_an_address;
  boost::asio::ip::make_address(host, not_an_address);
  bool set;
  if (not_an_address) {
    set = SSL_set1_host(ssl_, host.c_str()) == 1 && SSL_set_tlsext_host_name(ssl_, host.c_str()) == 1;
  } else {
    set = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_), host.substr(0, host.find('%')).c_str()) == 1;
  }
  if (set) return;
  broken_ = true;  // one that is too long, say
  error_ = "the host's name cannot be that of a certificate";
}

TlsSession::~TlsSession() { SSL_free(ssl_); }

Io TlsSession::handshake() {
  if (broken_) return Io::kReset;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result != 1) return ended(result);
  wants_write_ = false;
  established_ = true;
  return Io::kOk;
}

Io TlsSession::read(char* to, size_t room, size_t& n) {
  ERR_clear_error();
  wants_write_ = false;
  const int result = SSL_read_ex(ssl_, to, room, &n);
  return result == 1 ? Io::kOk : ended(result);
}

Io TlsSession::write(std::span<iovec>& parts) {
  thread_local std::array<char, kRecord> record;
  for (;;) {
    skip(parts, 0);
    if (parts.empty()) return Io::kOk;
    const char* data = static_cast<const char*>(parts.front().iov_base);
    size_t size = std::min(parts.front().iov_len, kRecord);
    // Small parts go out as one record, and with that in one packet.
    if (parts.size() > 1 && size < kRecord) {
      size = 0;
      for (const iovec& part : parts) {
        const size_t step = std::min(part.iov_len, kRecord - size);
        std::memcpy(record.data() + size, part.iov_base, step);
        size += step;
      }
      data = record.data();
    }
    ERR_clear_error();
    size_t n = 0;
    const int result = SSL_write_ex(ssl_, data, size, &n);
    if (result == 1) {
      skip(parts, n);
      continue;
    }
    // A read that waits keeps its own reason.
    const bool read_wants_write = wants_write_;
    const Io io = ended(result);
    if (io == Io::kReset && error_.empty()) look_for_alert();
    wants_write_ = read_wants_write;
    return io;
  }
}

void TlsSession::look_for_alert() {
  ERR_clear_error();
  char byte = 0;
  size_t n = 0;
  if (const int result = SSL_peek_ex(ssl_, &byte, 1, &n); result != 1) (void)ended(result);
}

std::string_view TlsSession::protocol() const {
  const unsigned char* name = nullptr;
  unsigned size = 0;
  SSL_get0_alpn_selected(ssl_, &name, &size);
  return {reinterpret_cast<const char*>(name), size};
}

void TlsSession::close_notify() {
  if (!established_ || broken_ || (SSL_get_shutdown(ssl_) & SSL_SENT_SHUTDOWN) != 0) return;
  ERR_clear_error();
  SSL_shutdown(ssl_);
}

Io TlsSession::ended(int result) {
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
      wants_write_ = false;
      return Io::kWouldBlock;
    case SSL_ERROR_WANT_WRITE:
      wants_write_ = true;
      return Io::kWouldBlock;
    case SSL_ERROR_ZERO_RETURN:
      return Io::kEnd;
    default:
      break;
  }
  broken_ = true;
  got_plain_http_ = ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_HTTP_REQUEST;
  error_ = last_reason();
  if (const long verified = SSL_get_verify_result(ssl_); verified != X509_V_OK) {
    error_ = X509_verify_cert_error_string(verified);
  } else if (ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_WRONG_VERSION_NUMBER) {
    error_ = "the other side does not speak TLS";
  }
  return Io::kReset;
}

Result<std::shared_ptr<TlsContext>> TlsContext::load(TlsFiles files) {
  std::shared_ptr<TlsContext> context(new TlsContext(std::move(files)));
  context->seen_ = context->fingerprint();
  SLUICE_TRY(context->current_, make_context(context->files_));
  return context;
}

Result<bool> TlsContext::reload_if_changed() {
  std::string now = fingerprint();
  {
    const std::lock_guard lock(mutex_);
    if (now == seen_) return false;
    seen_ = std::move(now);
  }
  SLUICE_TRY(auto made, make_context(files_));
  const std::lock_guard lock(mutex_);
  current_ = std::move(made);
  return true;
}

// Size, time and number of the files: a file that is renamed into place, and a link that is turned, change it too.
std::string TlsContext::fingerprint() const {
  std::string out;
  const auto add = [&out](const std::string& path) {
    struct stat found {};
    if (path.empty() || ::stat(path.c_str(), &found) != 0) {
      out += "-;";
      return;
    }
    out += fmt::format("{}:{}:{}:{}.{:09};", found.st_dev, found.st_ino, found.st_size, found.st_mtim.tv_sec,
                       found.st_mtim.tv_nsec);
  };
  add(files_.certificate);
  add(files_.key);
  for (const std::string& authority : files_.authorities) add(authority);
  return out;
}

std::shared_ptr<SSL_CTX> TlsContext::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

// SSL_new() holds on to the context.
std::unique_ptr<TlsSession> TlsContext::accept(int fd) const {
  const auto context = current();
  return std::make_unique<TlsSession>(context.get(), fd);
}

std::unique_ptr<TlsSession> TlsContext::connect(int fd, const std::string& host, Alpn alpn) const {
  const auto context = current();
  return std::make_unique<TlsSession>(context.get(), fd, host, alpn);
}

std::shared_ptr<TlsContext> TlsContext::of_system() {
  static const std::shared_ptr<TlsContext> context = [] {
    auto loaded = load(TlsFiles{});
    SLUICE_CHECK(loaded.ok(), "{}", loaded.error().message);
    return std::move(loaded).value();
  }();
  return context;
}

void reload_certificates(TlsContext& context, std::string_view whose) {
  constexpr std::string_view kComponent = "net/tls";
  const auto changed = context.reload_if_changed();
  if (!changed.ok()) {
    SLUICE_LOG(warn, kComponent, "the certificates for {} have changed and cannot be used, the old ones stay: {}",
               whose, changed.error().message);
  } else if (*changed) {
    SLUICE_LOG(info, kComponent, "the certificates for {} have changed; new connections use the new ones", whose);
  }
}

}  // namespace sluice::net
