#include "cli/front_probe.h"

#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "net/http.h"

namespace sluice::cli {
namespace {

// Of the front alone: /health asks the ranks, whose hanging is the front's to see. A server with a key answers 401,
// which is an answer too.
constexpr std::string_view kQuestion = "GET /ping HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n";

}  // namespace

Result<FrontProbe> FrontProbe::open(const std::string& url, Duration patience, const Clock& clock) {
  SLUICE_TRY(const auto parsed, net::parse_url(url));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int problem = ::getaddrinfo(parsed.host.c_str(), std::to_string(parsed.port).c_str(), &hints, &found);
      problem != 0) {
    return Error{ErrorCode::kNotFound, fmt::format("{}: {}", parsed.host, ::gai_strerror(problem))};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  sockaddr_storage address{};
  std::memcpy(&address, addresses->ai_addr, addresses->ai_addrlen);
  return FrontProbe(address, addresses->ai_addrlen, patience, clock);
}

FrontProbe::FrontProbe(const sockaddr_storage& address, socklen_t size, Duration patience, const Clock& clock)
    : address_(address), address_size_(size), each_(patience / kQuestions), clock_(clock), due_(clock.now() + each_) {}

FrontProbe::FrontProbe(FrontProbe&& other) noexcept
    : address_(other.address_),
      address_size_(other.address_size_),
      each_(other.each_),
      clock_(other.clock_),
      socket_(std::exchange(other.socket_, -1)),
      sent_(other.sent_),
      unanswered_(other.unanswered_),
      due_(other.due_) {}

FrontProbe::~FrontProbe() { hang_up(); }

short FrontProbe::events() const { return sent_ ? POLLIN : POLLOUT; }

void FrontProbe::look() {
  if (socket_ >= 0 && answered()) {
    hang_up();
    unanswered_ = 0;
    due_ = clock_.now() + each_;
    return;
  }
  if (clock_.now() < due_) return;
  if (socket_ >= 0) ++unanswered_;
  hang_up();
  due_ = clock_.now() + each_;
  ask();
}

void FrontProbe::ask() {
  socket_ = ::socket(address_.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket_ < 0) return;  // none is left here, which says nothing of the worker
  const auto* address = reinterpret_cast<const sockaddr*>(&address_);
  if (::connect(socket_, address, address_size_) == 0 || errno == EINPROGRESS) return;
  hang_up();
}

// Sends the question once the connection is there. A connection that fails is no answer, and no question any more.
bool FrontProbe::answered() {
  if (!sent_) {
    const ssize_t n = ::send(socket_, kQuestion.data(), kQuestion.size(), MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == ENOTCONN || errno == EINTR)) return false;
    if (n == static_cast<ssize_t>(kQuestion.size())) {
      sent_ = true;
      return false;
    }
  } else {
    char byte;
    const ssize_t n = ::recv(socket_, &byte, 1, 0);
    if (n > 0) return true;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  }
  hang_up();
  return false;
}

void FrontProbe::hang_up() {
  if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  sent_ = false;
}

}  // namespace sluice::cli
