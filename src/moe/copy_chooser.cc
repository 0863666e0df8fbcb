#include "moe/copy_chooser.h"

#include <algorithm>

namespace sluice::moe {
namespace {

// Whether a token of this rank may go to several copies.
bool chooses(const ExpertMap& map, const parallel::Layout& layout) {
  return layout.a2a == parallel::MoeAllToAll::kNone || map.choice == CopyChoice::kDynamic;
}

// Which copies it may go to.
std::vector<std::vector<int32_t>> candidates(const ExpertMap& map, const parallel::Layout& layout, int64_t layer) {
  if (chooses(map, layout)) return map.copies(layer);
  std::vector<std::vector<int32_t>> single;
  for (const int32_t copy : static_copies(map, layer, layout.experts())) single.push_back({copy});
  return single;
}

}  // namespace

CopyChooser::~CopyChooser() {
  if (table_ != nullptr) backend_.release(table_, bytes_);
}

std::vector<int32_t> CopyChooser::table(int64_t layer) const {
  std::vector<int32_t> table(static_cast<size_t>(map_.logical * width_), -1);
  auto row = table.begin();
  for (const auto& copies : candidates(map_, layout_, layer)) {
    std::ranges::copy(copies, row);
    row += width_;
  }
  return table;
}

Result<void> CopyChooser::allocate(const kernels::Context& context) {
  const int64_t layers = std::ssize(map_.location);
  width_ = chooses(map_, layout_) ? map_.most_copies() : 1;
  bytes_ = static_cast<size_t>(layers * map_.logical * width_) * sizeof(int32_t);
  SLUICE_TRY(void* memory, backend_.allocate(bytes_));
  table_ = static_cast<int32_t*>(memory);
  for (int64_t layer = 0; layer < layers; ++layer) place(context, layer);
  return {};
}

void CopyChooser::place(const kernels::Context& context, int64_t layer) {
  const std::vector<int32_t> values = table(layer);
  backend_.copy_to_device(context, table_ + layer * map_.logical * width_, values.data(),
                          values.size() * sizeof(int32_t));
  backend_.synchronize(context);
}

void CopyChooser::choose(const kernels::Context& context, int64_t layer, uint64_t step, int64_t before,
                         const int32_t* ids, int32_t* out, int64_t n, int64_t top_k) const {
  const bool own_tokens = layout_.a2a != parallel::MoeAllToAll::kNone;
  const auto rank = static_cast<uint64_t>(own_tokens ? layout_.tp_rank : 0);
  const uint64_t seed = kernels::splitmix64((step << 32) ^ (rank << 16) ^ static_cast<uint64_t>(layer));
  backend_.choose_copies(context, {.ids = ids,
                                   .copies = table_ + layer * map_.logical * width_,
                                   .out = out,
                                   .n = n,
                                   .top_k = top_k,
                                   .width = width_,
                                   .random = map_.choice == CopyChoice::kDynamic,
                                   // A number for each pair of the step.
                                   .seed = seed + static_cast<uint64_t>(before * top_k)});
}

}  // namespace sluice::moe
