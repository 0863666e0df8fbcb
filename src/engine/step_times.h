// How long steps take, learned from those that ran: what a mixed step may carry so that those who decode do not wait
// for long.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace sluice::engine {

// Used by one thread.
class StepTimes {
 public:
  // A step of so many decoding requests and prompt tokens took so long.
  void record(int64_t decoding, int64_t prompt_tokens, double seconds);

  // A step that only decodes should come next, because it is not known how long one of `decoding` requests takes.
  bool wants_decode_step(int64_t decoding) const;
  // Prompt tokens that can ride along with `decoding` requests in a step of at most `gap` times (> 1) a step of theirs
  // alone; at least 1, or no prompt would ever end.
  int64_t prompt_tokens(int64_t decoding, double gap) const;

 private:
  std::optional<double> decode_seconds(int64_t decoding) const;

  std::map<int64_t, double> decode_seconds_;  // by number of requests
  double token_seconds_ = 0;                  // what a prompt token adds; 0: not known
  int64_t since_decode_step_ = 0;             // mixed steps
};

}  // namespace sluice::engine
