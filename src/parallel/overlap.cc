#include "parallel/overlap.h"

#include <fmt/format.h>

#include <array>
#include <exception>
#include <limits>
#include <optional>
#include <utility>

namespace sluice::parallel {

// The other thread's work, which ends before what it refers to is gone.
class Overlap::Beside {
 public:
  Beside(Overlap& overlap, Work work) : overlap_(overlap) { overlap.strand_.begin(std::move(work)); }
  ~Beside() {
    if (!ended_) (void)end();
  }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;
  Result<void> end() {
    ended_ = true;
    overlap_.turns_.reach(std::numeric_limits<int64_t>::max());
    return overlap_.strand_.end();
  }

 private:
  Overlap& overlap_;
  bool ended_ = false;
};

Result<std::unique_ptr<Overlap>> Overlap::make(Communicator& world, const Layout& layout, size_t halves) {
  static constexpr std::array<std::string_view, 2> kNames = {"first half", "second half"};
  std::unique_ptr<Overlap> overlap(new Overlap);
  const Turn turn(overlap->turns_);
  for (size_t i = 0; i < halves; ++i) {
    Half& half = overlap->halves_.emplace_back();
    SLUICE_TRY(auto all, world.split(0, world.rank(), halves == 1 ? "overlap" : kNames[i]));
    half.all = give_turns(std::move(all), overlap->turns_);
    SLUICE_TRY(half.groups, make_groups(*half.all, layout));
  }
  return overlap;
}

uint64_t Overlap::received_bytes() const {
  uint64_t bytes = 0;
  for (const Half& half : halves_) bytes += half.groups.received_bytes();
  return bytes;
}

// As `work`. What it throws is told to all ranks first.
Result<void> Overlap::run(const Work& work) {
  try {
    return work();
  } catch (const std::exception& e) {
    Communicator& all = *halves_[0].all;
    all.abort(fmt::format("rank {}: {}", all.world_rank(all.rank()), e.what()));
    throw;
  }
}

Result<void> Overlap::both(const Work& first, const Work& second) {
  turns_.reach(0);
  std::optional<Beside> beside;
  SLUICE_TRY_VOID(run([&]() -> Result<void> {
    beside.emplace(*this, [&] { return run(second); });  // throws where there can be no thread
    return {};
  }));
  const Result<void> first_done = run(first);
  const Result<void> second_done = beside->end();
  SLUICE_TRY_VOID(first_done);
  return second_done;
}

}  // namespace sluice::parallel
