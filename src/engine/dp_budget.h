// What each rank has to do, as the dispatcher knows it: the rank's last word on the load board, plus what was sent to
// it since. Without the second part a burst between two words would pile onto one rank.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "engine/load_balance/method.h"
#include "engine/load_board.h"
#include "engine/messages.h"

namespace sluice::engine {

// Used under its owner's lock.
class DpBudget {
 public:
  // `board` and `clock` outlive this.
  DpBudget(const LoadBoard& board, const Clock& clock);

  // A request of `tokens` prompt tokens goes to `rank`, `fresh` of which it has to compute; `seq` grows from call to
  // call.
  void dispatched(int64_t rank, uint64_t seq, int64_t tokens, int64_t fresh);
  // The first output of that request came: its prompt waits no more, whatever the rank's last word says of it.
  void computed(int64_t rank, uint64_t seq);
  // It ended.
  void ended(int64_t rank, uint64_t seq);
  // The rank takes requests, or its process has ended. Ending clears what it had to do, and what it wrote last is not
  // read again.
  void set_active(int64_t rank, bool active);

  // [ranks] Reads the board again if the last time is 20 ms ago.
  std::span<RankLoad> loads();
  // The rank's last word, read now; zeros before its first.
  LoadSnapshot word(int64_t rank);

 private:
  struct Dispatched {
    uint64_t seq = 0;
    int64_t tokens = 0;
    int64_t fresh = 0;
  };
  struct Rank {
    LoadSnapshot word;                   // that loads() has counted
    LoadSnapshot last;                   // that was read
    int64_t stale_word = 0;              // unix_nanos of the last word of a process that has ended
    std::deque<Dispatched> not_in_word;  // ascending seq
  };

  // A word of the process that runs now, if there is one.
  std::optional<LoadSnapshot> read(int64_t rank);

  const LoadBoard& board_;
  const Clock& clock_;
  std::vector<Rank> ranks_;
  std::vector<RankLoad> loads_;
  std::optional<TimePoint> last_read_;
};

}  // namespace sluice::engine
