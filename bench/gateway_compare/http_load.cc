#include "http_load.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

namespace sluice::compare {
namespace {

constexpr Duration kLate = std::chrono::milliseconds(5);

TimePoint now_of_clock() { return std::chrono::steady_clock::now(); }

float milliseconds(Duration d) { return static_cast<float>(seconds(d) * 1000); }

}  // namespace

struct HttpLoad::Connection {
  int fd = -1;
  size_t port_index = 0;
  bool busy = false;
  bool wants_write = false;
  std::string out;  // the request; what of it is sent
  size_t sent = 0;
  TimePoint due;
  AnswerReader reader;
};

int64_t LoadResult::failed() const {
  int64_t all = 0;
  for (const auto& [reason, count] : errors) all += count;
  return all;
}

HttpLoad::HttpLoad(LoadOptions options, gateway::Workload& workload)
    : options_(std::move(options)),
      workload_(workload),
      body_head_(
          fmt::format(R"({{"model":"sim-model","max_tokens":{},"stream":{},"messages":[{{"role":"user","content":")",
                      options_.max_tokens, options_.stream)),
      body_tail_(R"("}]})"),
      epoll_(epoll_create1(0)),
      idle_(options_.ports.size()) {}

HttpLoad::~HttpLoad() {
  for (const auto& connection : connections_) {
    if (connection->fd >= 0) close(connection->fd);
  }
  close(epoll_);
}

Result<HttpLoad::Connection*> HttpLoad::connect(size_t port_index) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(options_.ports[port_index]);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const Error error{ErrorCode::kUnavailable,
                      fmt::format("127.0.0.1:{}: {}", options_.ports[port_index], std::strerror(errno))};
    if (fd >= 0) close(fd);
    return error;
  }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  Connection& connection = *connections_.emplace_back(std::make_unique<Connection>());
  connection.fd = fd;
  connection.port_index = port_index;
  epoll_event event{.events = EPOLLIN, .data = {.ptr = &connection}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  return &connection;
}

void HttpLoad::start(Connection& connection, const std::string& text, std::string_view headers, TimePoint due) {
  connection.busy = true;
  connection.due = due;
  connection.sent = 0;
  connection.reader.begin();
  std::string& out = connection.out;
  out.clear();
  fmt::format_to(std::back_inserter(out),
                 "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n"
                 "Accept: application/json\r\nAuthorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n"
                 "User-Agent: OpenAI/Python 1.50.0\r\n{}Content-Length: {}\r\n\r\n",
                 options_.ports[connection.port_index], headers, body_head_.size() + text.size() + body_tail_.size());
  out.append(body_head_).append(text).append(body_tail_);
  if (measuring_) {
    const double delay = milliseconds(now_of_clock() - due);
    result_.send_delay_ms = std::max(result_.send_delay_ms, delay);
  }
  send_some(connection);
}

void HttpLoad::send_some(Connection& connection) {
  while (connection.sent < connection.out.size()) {
    const ssize_t n = send(connection.fd, connection.out.data() + connection.sent,
                           connection.out.size() - connection.sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) return failed(connection, std::strerror(errno));
    connection.sent += static_cast<size_t>(n);
  }
  const bool wants_write = connection.sent < connection.out.size();
  if (wants_write == connection.wants_write) return;
  connection.wants_write = wants_write;
  epoll_event event{.events = wants_write ? EPOLLIN | EPOLLOUT : EPOLLIN, .data = {.ptr = &connection}};
  epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
}

void HttpLoad::read_some(Connection& connection) {
  char buffer[65536];
  const ssize_t n = recv(connection.fd, buffer, sizeof buffer, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n < 0) return failed(connection, std::strerror(errno));
  const TimePoint now = now_of_clock();
  if (!connection.busy) {  // the server ends an idle connection
    if (n > 0 && measuring_) ++result_.errors["bytes that nobody asked for"];
    return drop(connection);
  }
  events_.clear();
  const auto state =
      n == 0 ? connection.reader.end() : connection.reader.feed({buffer, static_cast<size_t>(n)}, events_);
  take_events(now);
  if (state == AnswerReader::State::kBroken) return failed(connection, n == 0 ? "closed in the middle" : "not HTTP");
  if (state == AnswerReader::State::kDone) ended(connection, now);
}

void HttpLoad::take_events(TimePoint now) {
  if (!measuring_) return;
  for (const StampedEvent& event : events_) {
    ++result_.chunks;
    result_.merged += event.merged ? 1 : 0;
    const Duration delay = now.time_since_epoch() - Duration(event.sent_at_ns);
    result_.late += delay > kLate ? 1 : 0;
    result_.chunk_delays_ms.push_back(milliseconds(delay));
  }
}

void HttpLoad::ended(Connection& connection, TimePoint now) {
  const int status = connection.reader.status();
  if (status != 200) return failed(connection, fmt::format("status {}", status));
  if (measuring_) {
    ++result_.requests;
    result_.latencies_ms.push_back(milliseconds(now - connection.due));
  }
  connection.busy = false;
  const size_t port_index = connection.port_index;
  if (connection.reader.keeps_connection()) {
    idle_[port_index].push_back(&connection);
  } else {
    drop(connection);
  }
  if (!options_.open_loop) issue(std::string(workload_.next()->text), now);
}

void HttpLoad::failed(Connection& connection, const std::string& reason) {
  if (measuring_) ++result_.errors[reason];
  drop(connection);
  // A server that refuses at once is not to be asked as fast as it refuses.
  if (!options_.open_loop) starts_.push_back(now_of_clock() + std::chrono::milliseconds(10));
}

void HttpLoad::drop(Connection& connection) {
  if (connection.fd < 0) return;
  close(connection.fd);
  connection.fd = -1;
  connection.busy = false;
  std::erase(idle_[connection.port_index], &connection);
}

void HttpLoad::issue(std::string text, TimePoint due) {
  Routed routed{.port_index = turn_++ % options_.ports.size(), .headers = {}};
  if (route) routed = route(text);
  auto& idle = idle_[routed.port_index];
  Connection* connection = nullptr;
  if (!idle.empty()) {
    connection = idle.back();
    idle.pop_back();
  } else {
    const auto opened = connect(routed.port_index);
    if (!opened.ok()) {
      if (measuring_) ++result_.errors[opened.error().message];
      if (!options_.open_loop) starts_.push_back(now_of_clock() + std::chrono::milliseconds(10));
      return;
    }
    connection = *opened;
  }
  start(*connection, text, routed.headers, due);
}

void HttpLoad::issue_due(TimePoint now) {
  while (!starts_.empty() && starts_.front() <= now) {
    const TimePoint due = starts_.front();
    starts_.pop_front();
    issue(std::string(workload_.next()->text), due);
  }
  while (coming_ && began_ + coming_->at <= now) {
    const TimePoint due = began_ + coming_->at;
    std::string text(coming_->text);
    coming_ = workload_.next();
    issue(std::move(text), due);
  }
}

TimePoint HttpLoad::next_due() const {
  TimePoint next = measuring_ ? window_began_ + options_.window : began_ + options_.warm_up;
  if (!starts_.empty()) next = std::min(next, starts_.front());
  if (coming_) next = std::min(next, began_ + coming_->at);
  return next;
}

void HttpLoad::begin_or_end(TimePoint now) {
  if (!measuring_ && now >= began_ + options_.warm_up) {
    measuring_ = true;
    window_began_ = now;
    if (on_begin) on_begin();
  } else if (measuring_ && now >= window_began_ + options_.window) {
    over_ = true;
    result_.seconds = seconds(now - window_began_);
    if (on_end) on_end();
  }
}

Result<LoadResult> HttpLoad::run() {
  const auto first = static_cast<size_t>(options_.connections);
  for (size_t i = 0; i < first; ++i) {
    SLUICE_TRY(Connection * connection, connect(i % options_.ports.size()));
    idle_[connection->port_index].push_back(connection);
  }
  began_ = now_of_clock();
  if (options_.open_loop) {
    coming_ = workload_.next();
  } else {
    for (size_t i = 0; i < first; ++i) {
      starts_.push_back(began_ + options_.spread * static_cast<int64_t>(i) / static_cast<int64_t>(first));
    }
  }
  while (!over_) {
    TimePoint now = now_of_clock();
    begin_or_end(now);
    issue_due(now);
    const Duration wait = std::max(next_due() - now_of_clock(), Duration::zero());
    const timespec timeout{.tv_sec = wait.count() / 1'000'000'000, .tv_nsec = wait.count() % 1'000'000'000};
    epoll_event ready[256];
    const int n = epoll_pwait2(epoll_, ready, 256, &timeout, nullptr);
    for (int i = 0; i < n; ++i) {
      auto& connection = *static_cast<Connection*>(ready[i].data.ptr);
      if (connection.fd >= 0 && (ready[i].events & EPOLLOUT) != 0) send_some(connection);
      if (connection.fd >= 0 && (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) read_some(connection);
    }
  }
  const TimePoint now = now_of_clock();
  for (const auto& connection : connections_) {
    if (!connection->busy) continue;
    ++result_.in_flight;
    result_.oldest_s = std::max(result_.oldest_s, seconds(now - connection->due));
  }
  return std::move(result_);
}

double percentile(std::vector<float>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, values.begin() + at);
  return values[static_cast<size_t>(at)];
}

std::string to_json(LoadResult& result) {
  std::string errors;
  for (const auto& [reason, count] : result.errors) {
    fmt::format_to(std::back_inserter(errors), "{}\"{}\":{}", errors.empty() ? "" : ",", reason, count);
  }
  auto& latencies = result.latencies_ms;
  auto& delays = result.chunk_delays_ms;
  return fmt::format(
      R"("seconds":{:.4f},"requests":{},"failed":{},"errors":{{{}}},"p50_ms":{:.4f},"p99_ms":{:.4f},"max_ms":{:.3f},)"
      R"("chunks":{},"merged":{},"late":{},"chunk_p50_ms":{:.4f},"chunk_p99_ms":{:.4f},"chunk_max_ms":{:.3f},)"
      R"("in_flight":{},"oldest_s":{:.3f},"send_delay_ms":{:.3f})",
      result.seconds, result.requests, result.failed(), errors, percentile(latencies, 0.5), percentile(latencies, 0.99),
      percentile(latencies, 1), result.chunks, result.merged, result.late, percentile(delays, 0.5),
      percentile(delays, 0.99), percentile(delays, 1), result.in_flight, result.oldest_s, result.send_delay_ms);
}

}  // namespace sluice::compare
