// How long steps take, learned from those that ran: what a mixed step may carry so that it takes no longer than a given
// number of steps of those who decode alone. A bound for each step, not for their mean.
//
// What is known is a number of measured steps, and an assumption: time grows with each of the quantities of a
// StepShape, and by no more than in proportion. So a step with at most r (>= 1) times a measured one's prompts adds at
// most r times what those added, and a batch of at least r (<= 1) times a measured one takes no less than r times its
// time. Nothing else is asked of the machine, least of all that a token at position 200,000 costs what the first one
// did. Where nothing near has been measured a prompt begins with few tokens, and grows from step to step.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace sluice::engine {

// What a step computes. Where several groups compute a part each, it lasts as long as the longest part.
struct StepShape {
  int64_t decoding = 0;      // sequences that decode; the most of any group
  int64_t all_decoding = 0;  // of all groups
  int64_t context = 0;       // their tokens, together; the most of any group
  // Tokens of prompts, a row of logits that is wanted of them counted as one more; the most of any group, and of all.
  int64_t prompt_tokens = 0;
  int64_t all_prompt_tokens = 0;
  int64_t prompt_reads = 0;  // the tokens before each of them, summed up: what attention reads; the most of any group
};

// Tokens of a prompt from `position` on as StepShape::prompt_reads counts them.
constexpr int64_t reads_of(int64_t position, int64_t tokens) { return tokens * position + tokens * (tokens - 1) / 2; }

// What of prompts a step may have.
class PromptRoom {
 public:
  // As many tokens as there are, wherever.
  static PromptRoom boundless();
  PromptRoom(double tokens, double work) : tokens_(tokens), work_(work) {}

  // Tokens of a prompt from `position` on that fit. `each`: what a token counts for, 2 if its logits are wanted.
  int64_t fit(int64_t position, int64_t each = 1) const;
  void take(int64_t position, int64_t tokens, int64_t each = 1);
  bool spent() const { return tokens_ < 1 || work_ <= 0; }

 private:
  double tokens_;
  double work_;  // tokens and what they read, in reads
};

// Used by one thread.
class StepTimes {
 public:
  void record(const StepShape& step, double seconds);

  // A step that only decodes should come next: it is not known well how long one of `decoding` takes, or whether the
  // last step was slow because of its prompts. Not more than three times in turn.
  bool wants_decode_step(const StepShape& decoding) const;
  // What can ride along with `decoding` in a step of at most `gap` (> 1) times a step of theirs alone, if `groups`
  // groups take as much each, whose prompts go on at `position` or before. At least a token, or no prompt would ever
  // end: the one reason for which a step may be longer.
  PromptRoom room(const StepShape& decoding, int64_t position, double gap, int64_t groups = 1) const;

 private:
  using Quantities = std::array<double, 3>;
  // The mean of like steps.
  struct Measured {
    std::array<int32_t, 3> cell{};  // which like ones share
    Quantities of{};
    double seconds = 0;  // of prompts: what they added
    double step = 0;     // the whole step
    int64_t times = 0;
    uint64_t last = 0;
  };
  // A step that only decodes: what it takes, and what it takes at least.
  struct Decoding {
    double likely = 0, least = 0;
  };

  static Quantities decoding_of(const StepShape& step);
  static Quantities prompts_of(const StepShape& step);

  std::optional<Decoding> decoding_time(const StepShape& step) const;
  // Beyond the time of decoding; nullopt: nothing is known.
  std::optional<double> prompt_time(const Quantities& prompts) const;
  // That smaller ones took.
  double least_prompt_time(const Quantities& prompts) const;
  const Measured* settled(const Quantities& prompts) const;
  bool is_settled(const Measured& m) const;
  // What the prompts of such a step add at most.
  double most(const Measured& prompts) const;
  void record_decoding(const StepShape& step, double seconds);
  void record_prompts(const StepShape& step, double seconds);
  void learn(std::vector<Measured>& all, size_t most, const Measured& like);
  // `times`: what it is measured by was measured.
  void see_noise(double ratio, int64_t times);

  std::vector<Measured> decoding_, prompts_;
  uint64_t steps_ = 0;
  int64_t since_decode_step_ = 0;  // mixed steps
  int64_t decode_steps_ = 0;       // in turn
  double noise_ = 1.15;            // what the latest steps took at the most, by the mean of the like
  // Steps that were slower than that, in turn, and by how much the least. It was chance, or the machine has changed,
  // and the next ones tell.
  struct Slow {
    double by = 1;
    int64_t times = 0;
  };
  Slow slow_decoding_, slow_prompts_;
  bool was_fast_ = false;  // the last mixed step, by smaller ones
};

}  // namespace sluice::engine
