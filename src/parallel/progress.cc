#include "parallel/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "parallel/collective.h"

namespace sluice::parallel {
namespace {

// step 32 | layer + 1 16 | phase 8
uint64_t pack(const Progress& p) {
  return uint64_t{p.step} << 32 | uint64_t{static_cast<uint16_t>(p.layer + 1)} << 8 | static_cast<uint8_t>(p.phase);
}

constexpr Duration kLateAtMost = std::chrono::milliseconds(100);  // as any machine is that has something else to do

// For whom `rank` waits: of two, one that waits for nobody itself, as a rank that hangs does. -1 = for nobody.
int next_after(int rank, std::span<const SignOfLife> signs) {
  int next = -1;
  for (const int other : signs[static_cast<size_t>(rank)].waits_for()) {
    if (other < 0) continue;
    const auto waits = signs[static_cast<size_t>(other)].waits_for();
    if (std::ranges::all_of(waits, [](int of) { return of < 0; })) return other;
    if (next < 0) next = other;
  }
  return next;
}

}  // namespace

std::string_view to_string(Phase phase) {
  static constexpr std::array<std::string_view, 17> kNames = {
      "none",     "load",    "receive", "plan",    "exchange", "control", "embed",   "attention", "gather",
      "dispatch", "experts", "combine", "scatter", "head",     "sample",  "publish", "rebalance"};
  const auto at = static_cast<size_t>(phase);
  return at < kNames.size() ? kNames[at] : "an unknown phase";
}

std::string to_string(const Progress& progress) {
  if (progress.phase == Phase::kNone) return {};
  if (progress.layer < 0) return fmt::format("step {}, {}", progress.step, to_string(progress.phase));
  return fmt::format("step {}, layer {}, {}", progress.step, progress.layer, to_string(progress.phase));
}

void SignOfLife::seen(TimePoint now, const Progress& progress) {
  where_.store(pack(progress), std::memory_order_relaxed);
  seen(now);
}

void SignOfLife::noticed(TimePoint now) {
  const int64_t at = now.time_since_epoch().count();
  int64_t known = when_.load(std::memory_order_relaxed);
  while (known != 0 && known < at) {
    if (when_.compare_exchange_weak(known, at, std::memory_order_relaxed)) return;
  }
}

void SignOfLife::Waiting::is_for(int rank) {
  if (place_ != nullptr) return place_->store(rank + 1, std::memory_order_relaxed);
  for (auto& place : sign_.waits_for_) {
    int32_t nobody = 0;
    if (!place.compare_exchange_strong(nobody, rank + 1, std::memory_order_relaxed)) continue;
    place_ = &place;
    return;
  }
}

Duration LostTime::look(Duration asked) {
  const TimePoint now = clock_.now();
  const Duration more = now - std::exchange(last_, now) - asked;
  return more < kLateAtMost ? Duration::zero() : more;
}

Progress SignOfLife::where() const {
  const uint64_t word = where_.load(std::memory_order_relaxed);
  return {.step = static_cast<uint32_t>(word >> 32),
          .phase = static_cast<Phase>(word & 0xff),
          .layer = static_cast<int>(word >> 8 & 0xffff) - 1};
}

Result<Duration> time_left(const Wait& wait, std::span<const SignOfLife> signs, TimePoint now, Duration silence_limit,
                           Duration join_limit) {
  silence_limit += wait.lost;
  join_limit += wait.lost;
  Duration left = join_limit;
  bool silent = false;
  for (const int rank : wait.missing) {
    const SignOfLife& sign = signs[static_cast<size_t>(rank)];
    const Duration limit = sign.joined() ? silence_limit : join_limit;
    // A rank that had nothing to do was silent with good reason until we needed it.
    const Duration left_for_rank = std::max(sign.when(), wait.since) + limit - now;
    silent |= left_for_rank <= Duration::zero();
    left = std::min(left, left_for_rank);
  }
  if (!silent) return left;

  const auto in = [](const Progress& p) { return p.phase == Phase::kNone ? "" : fmt::format(" ({})", to_string(p)); };
  std::string text = fmt::format("group {}: rank {} waits in {}{} for {}:", wait.group, wait.waiting, wait.call,
                                 in(signs[static_cast<size_t>(wait.waiting)].where()), list_ranks(wait.missing));
  std::string_view separator = " ";
  for (const int rank : wait.missing) {
    const SignOfLife& sign = signs[static_cast<size_t>(rank)];
    if (sign.joined()) {
      text += fmt::format("{}no sign of rank {} for {:.1f} s{}", separator, rank, seconds(now - sign.when()),
                          in(sign.where()));
      int next = next_after(rank, signs);
      for (size_t i = 0; next >= 0 && next != rank && i < signs.size(); ++i) {
        text += fmt::format(", which waits for rank {}{}", next, in(signs[static_cast<size_t>(next)].where()));
        next = next_after(next, signs);
      }
    } else {
      text += fmt::format("{}rank {} has not joined within {:.1f} s", separator, rank, seconds(now - wait.since));
    }
    separator = ", ";
  }
  return Error{ErrorCode::kTimeout, std::move(text)};
}

}  // namespace sluice::parallel
