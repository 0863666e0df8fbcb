#include "engine/step_times.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

namespace sluice::engine {
namespace {

// A token costs no less than attending to so many. Attention alone would say that the 100th costs ten times the tenth.
constexpr double kReadsPerToken = 256;
constexpr double kFirstTokens = 1;        // before anything is known of prompts
constexpr int64_t kFirstPosition = 2048;  // fewer beyond it
constexpr double kLargestGrowth = 2.5;    // from what was measured to what comes next
constexpr int64_t kMixedSteps = 64;       // after so many decoding is measured anew
constexpr double kNear = 0.8;             // shares of each quantity, of batches that take alike
constexpr int64_t kSettled = 2;           // measurements that are more than chance
constexpr double kLongestMean = 16;
constexpr double kLeastNoise = 1.04, kMostNoise = 1.3, kNoiseFades = 1.0 / 128;
constexpr int64_t kNoiseFrom = 4;   // measurements: a mean of fewer is noise itself
constexpr double kUnsettled = 0.5;  // as far as this a settled measurement is better than another
constexpr double kSlow = 1.25;      // times what noise explains
constexpr int64_t kSlowSteps = 3;   // in turn, after which it is the machine
constexpr double kMostSlower = 16;
constexpr double kMargin = 0.97;
constexpr uint64_t kStale = 256;  // steps, after which a measurement holds nothing back
constexpr size_t kMostDecodings = 64, kMostPrompts = 192;

int32_t cell_of(double value, double per_octave) {
  return static_cast<int32_t>(std::floor(per_octave * std::log2(std::max(1.0, value))));
}

double work_of(int64_t position, double tokens) {
  return tokens * (static_cast<double>(position) + kReadsPerToken) + tokens * tokens / 2;
}

// Times that `a` has of what `b` has, in the quantity of which it has most; at least 1.
double larger_by(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  return std::max({1.0, a[0] / b[0], a[1] / b[1], a[2] / b[2]});
}

bool within(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  return a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2];
}

PromptRoom at_least_one(PromptRoom room, int64_t position) {
  return room.fit(position) > 0 ? room : PromptRoom(1, work_of(position, 1));
}

}  // namespace

PromptRoom PromptRoom::boundless() { return {1e15, std::numeric_limits<double>::infinity()}; }

int64_t PromptRoom::fit(int64_t position, int64_t each) const {
  double tokens = tokens_ / static_cast<double>(each);
  if (work_ < work_of(position, tokens)) {
    const double before = static_cast<double>(position) + kReadsPerToken;
    tokens = std::sqrt(before * before + 2 * std::max(0.0, work_)) - before;
  }
  return static_cast<int64_t>(tokens + 1e-6);
}

void PromptRoom::take(int64_t position, int64_t tokens, int64_t each) {
  tokens_ -= static_cast<double>(tokens * each);
  work_ -= work_of(position, static_cast<double>(tokens));
}

StepTimes::Quantities StepTimes::decoding_of(const StepShape& step) {
  return {static_cast<double>(step.decoding), static_cast<double>(std::max(step.all_decoding, step.decoding)),
          static_cast<double>(step.context) + kReadsPerToken * static_cast<double>(step.decoding)};
}

StepTimes::Quantities StepTimes::prompts_of(const StepShape& step) {
  const auto tokens = static_cast<double>(step.prompt_tokens);
  return {tokens, std::max(tokens, static_cast<double>(step.all_prompt_tokens)),
          static_cast<double>(step.prompt_reads) + kReadsPerToken * tokens};
}

void StepTimes::record(const StepShape& step, double seconds) {
  ++steps_;
  if (step.prompt_tokens == 0) {
    since_decode_step_ = 0;
    ++decode_steps_;
    if (step.decoding > 0) record_decoding(step, seconds);
    return;
  }
  ++since_decode_step_;
  decode_steps_ = 0;
  // Chunks without anybody beside them are large, and say nothing of small ones.
  if (step.decoding > 0) record_prompts(step, seconds);
}

// ---- decoding alone

void StepTimes::record_decoding(const StepShape& step, double seconds) {
  Measured like{.of = decoding_of(step), .seconds = seconds, .times = 1, .last = steps_};
  like.cell = {static_cast<int32_t>(step.decoding), static_cast<int32_t>(step.all_decoding), cell_of(like.of[2], 2)};
  const auto known = std::ranges::find(decoding_, like.cell, &Measured::cell);
  if (known != decoding_.end() && is_settled(*known)) {
    const double ratio = seconds / known->seconds;
    if (ratio > kSlow * noise_) {
      // A slow step by chance must not make room for prompts.
      slow_decoding_.by = slow_decoding_.times == 0 ? ratio : std::min(ratio, slow_decoding_.by);
      if (++slow_decoding_.times < kSlowSteps) return;
      for (auto* all : {&decoding_, &prompts_}) {
        for (Measured& m : *all) m.seconds *= slow_decoding_.by;
      }
      slow_prompts_ = {};
    } else if (ratio * kSlow * noise_ < 1) {
      known->seconds = seconds;
      for (Measured& m : decoding_) m.times = 1;
      was_fast_ = false;
    } else {
      see_noise(ratio, known->times);
    }
  }
  slow_decoding_ = {};
  // The lesser of the first two, and no more than follows from other batches: chance makes steps longer, hardly
  // shorter.
  if (known != decoding_.end() && known->times == 1) like.seconds = std::min(like.seconds, known->seconds);
  if (known == decoding_.end() || !is_settled(*known)) {
    for (const Measured& m : decoding_) {
      if (is_settled(m)) like.seconds = std::min(like.seconds, noise_ * larger_by(like.of, m.of) * m.seconds);
    }
  }
  learn(decoding_, kMostDecodings, like);
}

std::optional<StepTimes::Decoding> StepTimes::decoding_time(const StepShape& step) const {
  const Quantities of = decoding_of(step);
  const Measured* nearest = nullptr;
  double least_away = -1, share = 1;
  for (const Measured& m : decoding_) {
    double smaller = 1, larger = 1;
    for (size_t i = 0; i < of.size(); ++i) {
      smaller = std::min(smaller, of[i] / m.of[i]);
      larger = std::min(larger, m.of[i] / of[i]);
    }
    // A batch that is larger in one and smaller in another quantity is far in both.
    const double near = smaller * larger * (is_settled(m) ? 1 : kUnsettled);
    if (near <= least_away) continue;
    least_away = near;
    share = smaller;
    nearest = &m;
  }
  if (nearest == nullptr) return std::nullopt;
  const double likely = share * nearest->seconds;
  return Decoding{.likely = likely, .least = likely / (1 + (noise_ - 1) / std::sqrt(nearest->times))};
}

bool StepTimes::wants_decode_step(const StepShape& decoding) const {
  if (decoding_.empty()) return true;
  if (slow_decoding_.times > 0) return true;
  if (decode_steps_ >= kSettled) return false;
  if (since_decode_step_ >= kMixedSteps) return true;
  if (since_decode_step_ > 0 && (slow_prompts_.times > 0 || was_fast_)) return true;
  const Quantities of = decoding_of(decoding);
  return std::ranges::none_of(decoding_, [&](const Measured& m) {
    for (size_t i = 0; i < of.size(); ++i) {
      if (of[i] < kNear * m.of[i] || m.of[i] < kNear * of[i]) return false;
    }
    return is_settled(m);
  });
}

// ---- prompts beside it

void StepTimes::record_prompts(const StepShape& step, double seconds) {
  const auto decoding = decoding_time(step);
  if (!decoding) return;
  Measured like{.of = prompts_of(step), .step = seconds, .times = 1, .last = steps_};
  like.cell = {cell_of(like.of[0], 8), cell_of(like.of[1] / like.of[0], 4), cell_of(like.of[2] / like.of[0], 4)};
  like.seconds = std::max(0.0, seconds - decoding->likely);
  const auto known = std::ranges::find(prompts_, like.cell, &Measured::cell);
  const bool has_like = known != prompts_.end() && is_settled(*known);
  if (const auto thought = prompt_time(like.of)) {
    if (seconds > kSlow * noise_ * (decoding->likely + *thought)) {
      const double slower = std::min(kMostSlower, like.seconds / std::max(*thought, decoding->likely / kMostSlower));
      if (slow_prompts_.times == 0) {
        slow_prompts_ = {.by = slower, .times = 1};
        if (has_like) return;
      } else {
        // All of them, and whatever promises less for these yet was wrong.
        const double by = std::min(slower, slow_prompts_.by);
        for (Measured& m : prompts_) m.seconds = std::max(by * m.seconds, like.seconds / larger_by(like.of, m.of));
        slow_prompts_ = {};
      }
    } else {
      slow_prompts_ = {};
      if (has_like) see_noise(seconds / (decoding->likely + known->seconds), known->times);
    }
  }
  const double least = least_prompt_time(like.of);
  if (seconds * kSlow * noise_ < decoding->likely + least) {
    // Who took that for cheap prompts would take more, and it may be that decoding is faster now.
    if (!std::exchange(was_fast_, true)) return;
    // It is not. What smaller ones took before is no measure any more.
    for (Measured& m : prompts_) {
      if (within(m.of, like.of) && m.seconds > like.seconds) m.times = 1;
    }
  }
  was_fast_ = false;
  learn(prompts_, kMostPrompts, like);
}

double StepTimes::least_prompt_time(const Quantities& of) const {
  double least = 0;
  for (const Measured& m : prompts_) {
    if (within(m.of, of) && is_settled(m)) least = std::max(least, m.seconds);
  }
  return least;
}

const StepTimes::Measured* StepTimes::settled(const Quantities& of) const {
  const std::array<int32_t, 3> cell{cell_of(of[0], 8), cell_of(of[1] / of[0], 4), cell_of(of[2] / of[0], 4)};
  const auto found = std::ranges::find(prompts_, cell, &Measured::cell);
  return found == prompts_.end() || !is_settled(*found) ? nullptr : &*found;
}

bool StepTimes::is_settled(const Measured& m) const { return m.times >= kSettled && m.last + kStale >= steps_; }

std::optional<double> StepTimes::prompt_time(const Quantities& of) const {
  if (const Measured* own = settled(of)) return most(*own);
  std::optional<double> least;
  for (const Measured& m : prompts_) {
    const double time = larger_by(of, m.of) * most(m);
    if (!least || time < *least) least = time;
  }
  return least;
}

PromptRoom StepTimes::room(const StepShape& decoding, int64_t position, double gap, int64_t groups) const {
  const auto alone = decoding_time(decoding);
  const auto all = static_cast<double>(groups);
  if (!alone || prompts_.empty()) {
    const double tokens = std::max(1.0, std::floor(kFirstTokens / all));
    return at_least_one({tokens, work_of(kFirstPosition, tokens)}, position);
  }
  const double left = kMargin * gap * alone->least / noise_ - alone->likely;
  int64_t best = 1;
  for (const Measured& m : prompts_) {
    const double added = slow_prompts_.by * most(m);
    if (added > left) continue;
    const double times = added * kLargestGrowth <= left ? kLargestGrowth : left / added;
    best = std::max(best, PromptRoom(times * std::min(m.of[0], m.of[1] / all), times * m.of[2]).fit(position));
  }
  // What was measured goes before what follows from other steps.
  for (; best > 1; best -= std::max<int64_t>(1, std::bit_floor(static_cast<uint64_t>(best)) / 8)) {
    const auto n = static_cast<double>(best);
    const Measured* known = settled({n, n * all, work_of(position, n)});
    if (known == nullptr || slow_prompts_.by * most(*known) <= left) break;
  }
  // Few different lengths of the whole batch: libraries prepare for each one that they meet.
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(best))) / 8);
  best = std::max<int64_t>(1, best - (best + decoding.decoding) % grain);
  return {static_cast<double>(best), work_of(position, static_cast<double>(best))};
}

double StepTimes::most(const Measured& prompts) const {
  return prompts.seconds + (noise_ - 1) * prompts.step / std::sqrt(prompts.times);
}

void StepTimes::learn(std::vector<Measured>& all, size_t most, const Measured& like) {
  const auto known = std::ranges::find(all, like.cell, &Measured::cell);
  if (known == all.end()) {
    if (all.size() >= most) all.erase(std::ranges::min_element(all, {}, &Measured::last));
    all.push_back(like);
    return;
  }
  known->times = known->last + kStale < steps_ ? 1 : known->times + 1;
  known->last = steps_;
  // The first may have been far too long.
  const double weight = known->times == 2 && like.seconds < known->seconds
                            ? 1
                            : 1 / std::min(kLongestMean, static_cast<double>(known->times));
  known->seconds += weight * (like.seconds - known->seconds);
  known->step += weight * (like.step - known->step);
  for (size_t i = 0; i < like.of.size(); ++i) known->of[i] += weight * (like.of[i] - known->of[i]);
}

void StepTimes::see_noise(double ratio, int64_t times) {
  if (times < kNoiseFrom) return;
  noise_ = std::clamp(std::max(ratio, noise_ - kNoiseFades * (noise_ - 1)), kLeastNoise, kMostNoise);
}

}  // namespace sluice::engine
