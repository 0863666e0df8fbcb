// Whether the front process of a worker still answers. One that hangs (stopped, deadlocked) keeps its pipe, its pidfd
// and its port: the kernel goes on taking connections that nobody reads. So it is asked something that costs it
// nothing, on a connection of its own, and whatever it answers means that it lives. Only silence counts against it: a
// connection that is refused or broken off is the work of somebody, as of a front that ends in order and listens no
// more; and of a process that has ended its pidfd tells.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::cli {

// For a loop around poll(2); it never blocks. A question is given up after a third of the patience and asked anew, and
// after an answer comes a pause of as much: three questions that were met with silence, with no answer in between, are
// the end of it. A watcher that was stopped itself finds the answers that came meanwhile.
class FrontProbe {
 public:
  // `url`: http://host:port. An error: its host is no address of a machine that can be looked up. `clock` outlives
  // this.
  static Result<FrontProbe> open(const std::string& url, Duration patience, const Clock& clock);
  FrontProbe(FrontProbe&& other) noexcept;
  FrontProbe& operator=(FrontProbe&&) = delete;
  ~FrontProbe();

  // What to poll: -1 between two questions.
  int descriptor() const { return socket_; }
  short events() const;
  // When look() has something to do though the descriptor is quiet.
  TimePoint due() const { return due_; }

  // To be called when either is so; at any other time it does nothing.
  void look();
  // It has shown elsewhere that it lives.
  void heard() { unanswered_ = 0; }

  bool gave_up() const { return unanswered_ >= kQuestions; }

 private:
  static constexpr int kQuestions = 3;
  FrontProbe(const sockaddr_storage& address, socklen_t size, Duration patience, const Clock& clock);

  void ask();
  bool answered();
  void hang_up();

  const sockaddr_storage address_;
  const socklen_t address_size_;
  const Duration each_;  // for one question, and between an answer and the next
  const Clock& clock_;
  int socket_ = -1;
  bool sent_ = false;
  int unanswered_ = 0;
  TimePoint due_;
};

}  // namespace sluice::cli
