// What a server's listening side and its connections share; of net/server only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <unordered_set>

#include "net/server.h"
#include "net/stream.h"
#include "net/wire.h"

namespace sluice::net {

class ServerConnection;

// What the connections share. They keep it alive: they may outlive the Server when the loops were stopped first.
struct ServerState {
  ServerState(LoopGroup& l, ServerOptions o, Handler h) : loops(l), options(std::move(o)), handler(std::move(h)) {}

  // Constant after construction.
  LoopGroup& loops;
  const ServerOptions options;
  const Handler handler;

  std::atomic<bool> draining{false};
  std::atomic<bool> handed_over{false};
  std::atomic<size_t> active{0};
  std::atomic<size_t> open{0};
  // Guards nothing but the sleep of those who wait for the counts to fall.
  std::mutex mutex;
  std::condition_variable fell;

  // Belongs to loop i.
  struct PerLoop {
    std::unordered_set<ServerConnection*> connections;
  };
  std::vector<PerLoop> per_loop{loops.size()};

  void lower(std::atomic<size_t>& count) {
    if (count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const std::lock_guard lock(mutex);
    fell.notify_all();
  }
  // True if the count fell to zero in time.
  bool wait_for_none(const std::atomic<size_t>& count, Duration bound) {
    std::unique_lock lock(mutex);
    return fell.wait_for(lock, bound, [&] { return count.load(std::memory_order_acquire) == 0; });
  }
};

// One connection of a server: its requests, one after the other. Loop thread only.
class ServerConnection final : public Stream, public ServerExchange {
 public:
  ServerConnection(std::shared_ptr<ServerState> state, size_t loop_index, int fd, std::string peer);
  ~ServerConnection() override;

  Task<> run();
  // Ends the connection, also under a running handler, which learns of it like of a client that went away.
  void cut() {
    gone_ = true;
    close();
    if (in_handler_) call_gone();
  }

  // ServerExchange
  const RequestHead& request() const override { return request_; }
  EventLoop& loop() override { return Stream::loop(); }
  std::string_view peer_address() const override { return peer_; }
  Task<Result<std::string>> read_body(size_t limit) override;
  Task<Result<void>> respond(Response response) override;
  Task<Result<void>> start(ResponseHead head) override;
  Task<Result<void>> write(std::string_view bytes) override;
  bool write_now(std::string_view bytes) override;
  Task<Result<void>> drain() override;
  Task<Result<void>> finish() override;
  void set_trailers(Headers trailers) override { trailers_ = std::move(trailers); }
  bool started() const override { return answer_ != Answer::kNone; }
  void abort() override;
  void on_client_gone(std::function<void()> callback) override;
  bool client_gone() const override { return gone_ || !is_open(); }

 private:
  enum class Answer { kNone, kStreaming, kDone };

  Task<bool> agree_on_tls();
  Task<> refuse(int status, std::string message);
  Task<bool> read_request();
  Task<> handle();
  Task<bool> discard_body();
  Task<> linger();
  Task<Result<void>> send(std::span<iovec> parts);
  Result<void> written(Io io);
  void begin_head(int status, const std::optional<std::string>& reason);
  void end_head();
  void flush_head();

  // The client closed or reset the connection, or it was closed under the handler.
  void on_ended() override {
    gone_ = true;
    if (in_handler_) call_gone();
  }
  // Behind the body of this request; behind further requests it is left to them.
  void on_ended_unread() override {
    if (!parser_.done()) on_ended();
  }
  void call_gone() {
    if (const auto callback = std::exchange(gone_callback_, nullptr)) callback();
  }

  bool head_only() const { return request_.method == "HEAD"; }

  const std::shared_ptr<ServerState> state_;
  const size_t loop_index_;
  const std::string peer_;

  MessageParser parser_;
  RequestHead request_;
  bool expects_continue_ = false;
  bool keep_ = false;
  bool ended_badly_ = false;  // there may be unread bytes: let the client read the answer before the reset
  bool in_handler_ = false;
  bool active_ = false;
  bool gone_ = false;
  std::function<void()> gone_callback_;

  Answer answer_ = Answer::kNone;
  bool chunked_ = false;
  bool no_body_ = false;
  std::optional<uint64_t> promised_;  // bytes of Content-Length still to be written
  Headers trailers_;
  std::string out_;     // the head, until it was sent
  size_t flushed_ = 0;  // bytes of it that went out already
  // What write_now() leaves to drain().
  std::string unsent_;
  std::optional<Error> trouble_;
  uint64_t exchange_ = 0;
};

}  // namespace sluice::net
