#include "parallel/overlap.h"

namespace sluice::parallel {

Result<std::unique_ptr<Overlap>> Overlap::make(Communicator& world, const Layout& layout) {
  std::unique_ptr<Overlap> overlap(new Overlap);
  const Turn turn(overlap->turns_);
  static constexpr std::array<std::string_view, 2> kNames = {"first half", "second half"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    Half& half = overlap->halves_[i];
    SLUICE_TRY(auto all, world.split(0, world.rank(), kNames[i]));
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

}  // namespace sluice::parallel
