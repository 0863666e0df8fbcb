// The front's side of the ZeroMQ sockets (engine/rank.h has the contract): one PULL on which every rank answers, and
// one PUSH per rank and incarnation, so that nothing meant for a dead process reaches its successor.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "engine/codec.h"

namespace sluice::engine {

// Used by one thread.
class FrontLink {
 public:
  // Only processes of this user can connect, and where an `address` of this host is given, whoever reaches that.
  static Result<std::unique_ptr<FrontLink>> create(int64_t ranks, const std::string& address = "");
  ~FrontLink();  // drops what was not sent

  // `elsewhere`: for a rank on another host, at the address.
  const std::string& output_endpoint(bool elsewhere = false) const;
  // A new input of the rank; returns its endpoint.
  Result<std::string> open_input(int64_t rank, uint64_t incarnation, bool elsewhere = false);
  // Drops what the rank has not taken.
  void close_input(int64_t rank);

  // Never waits: what a rank cannot take yet is kept until wait() finds that it can. The input must be open.
  void send(int64_t rank, const ToRank& message);
  // The next frame that is there now. One that does not decode is logged and dropped.
  std::optional<RankFrame> receive();

  struct Watched {
    int fd = -1;
    bool readable = false;  // set by wait()
  };
  // Sleeps until there is a frame, one of `watched` is readable, or `bound` has passed; no bound means for ever.
  void wait(std::span<Watched> watched, std::optional<Duration> bound);

 private:
  class Impl;
  explicit FrontLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
