// Where ranks on several hosts find each other: one of them (or their front) serves a table of small values at a known
// address, and each rank states who it is, puts down its own addresses and reads the others'. Whatever listens is bound
// before it is published.
//
// It is for the network between the hosts of one server: whoever reaches the port can join.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::parallel {

// What all ranks must have in common before they may work together.
struct RankIdentity {
  int rank = 0;
  int size = 1;
  std::string host;         // of the rank, for messages
  std::string fingerprint;  // version and flags, readable: compared as text
};

class RendezvousServer {
 public:
  // `endpoint` is host:port, or [address]:port, of this host; port 0 = any. kInvalidArgument, kExhausted.
  static Result<std::unique_ptr<RendezvousServer>> serve(const std::string& endpoint, int size);
  ~RendezvousServer();

  // host:port with the port that was bound.
  const std::string& endpoint() const { return endpoint_; }

 private:
  struct State;
  RendezvousServer(std::unique_ptr<State> state, std::string endpoint);

  std::unique_ptr<State> state_;
  const std::string endpoint_;
};

// A rank's connection to it. Used by one thread.
class RendezvousClient {
 public:
  // Waits for the server, which may start later. kTimeout where nobody answers; what the server says where this rank
  // does not fit: its number is taken, or another size, version or flags. `bound` holds for each later wait, too.
  static Result<RendezvousClient> join(const std::string& endpoint, const RankIdentity& who, Duration bound);
  RendezvousClient(RendezvousClient&&) noexcept;
  ~RendezvousClient();

  Result<void> set(const std::string& key, const std::vector<char>& value);
  // Waits until somebody has set it; kTimeout names the key.
  Result<std::vector<char>> get(const std::string& key);

 private:
  struct State;
  explicit RendezvousClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::parallel
