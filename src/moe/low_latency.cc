#include "moe/low_latency.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace sluice::moe {

using parallel::Element;

namespace {

std::vector<int64_t> times(std::vector<int64_t> rows, int64_t width) {
  for (int64_t& value : rows) value *= width;
  return rows;
}

}  // namespace

LowLatency::LowLatency(const kernels::Backend& backend, const parallel::Groups& groups, const Sizes& sizes,
                       int64_t capacity, bool fp8)
    : backend_(backend),
      groups_(groups),
      sizes_(sizes),
      ranks_(groups.layout.tp_size),
      capacity_(capacity),
      own_experts_(parallel::part_of(sizes.experts, groups.layout.experts())),
      expert_rows_(backend.padded_rows(ranks_ * capacity)),
      memory_(backend),
      payload_(backend, sizes, fp8) {
  SLUICE_CHECK(groups.layout.ep_size == ranks_, "{} parts of the experts on {} ranks", groups.layout.ep_size, ranks_);
}

Result<void> LowLatency::allocate(int64_t, int64_t) {
  const auto row_bytes = sizes_.hidden * static_cast<int64_t>(tensor::block_bytes(sizes_.dtype));
  const int64_t most_sent = capacity_ * sizes_.top_k;
  const int64_t most_received = ranks_ * capacity_ * std::min(sizes_.top_k, own_experts_.count);
  SLUICE_TRY(device_places_, memory_.take<int32_t>(most_sent));
  SLUICE_TRY(device_slab_places_, memory_.take<int32_t>(most_received));
  SLUICE_TRY(device_slab_ids_, memory_.take<int32_t>(most_received));
  SLUICE_TRY(starts_, memory_.take<int32_t>(own_experts_.count));
  SLUICE_TRY_VOID(payload_.allocate(capacity_, most_received));
  SLUICE_TRY(send_, memory_.take<char>(most_sent * payload_.row_bytes()));
  SLUICE_TRY(arrived_, memory_.take<char>(most_received * row_bytes));
  SLUICE_TRY(slab_, memory_.take<char>(slab_rows() * row_bytes));
  SLUICE_TRY(results_, memory_.take<float>(slab_rows() * sizes_.hidden));
  SLUICE_TRY(leaving_, memory_.take<float>(most_received * sizes_.hidden));
  SLUICE_TRY(returned_, memory_.take<float>(most_sent * sizes_.hidden));
  return {};
}

void LowLatency::plan_rows(const kernels::Context& context) {
  ids_.resize(static_cast<size_t>(own_.n * sizes_.top_k));
  backend_.copy_to_host(context, ids_.data(), own_.ids, ids_.size() * sizeof(int32_t));
  backend_.synchronize(context);
  expert_counts_.assign(static_cast<size_t>(sizes_.experts), 0);
  for (const int32_t id : ids_) {
    if (id >= 0) ++expert_counts_[static_cast<size_t>(id)];
  }
  std::vector<int64_t> next(expert_counts_.size());
  std::exclusive_scan(expert_counts_.begin(), expert_counts_.end(), next.begin(), int64_t{0});
  places_.resize(ids_.size());
  for (size_t pair = 0; pair < ids_.size(); ++pair) {
    places_[pair] = ids_[pair] < 0 ? -1 : static_cast<int32_t>(next[static_cast<size_t>(ids_[pair])]++);
  }
}

Result<void> LowLatency::exchange_counts() {
  std::vector<int64_t> values_out;
  counts_out_.clear();
  sent_.clear();
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const parallel::Slice experts = parallel::part_of(sizes_.experts, {rank, ranks_});
    const auto counts =
        std::span(expert_counts_).subspan(static_cast<size_t>(experts.first), static_cast<size_t>(experts.count));
    counts_out_.insert(counts_out_.end(), counts.begin(), counts.end());
    counts_out_.push_back(own_.n);
    values_out.push_back(experts.count + 1);
    sent_.push_back(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  }
  const int64_t width = own_experts_.count + 1;
  counts_in_.resize(static_cast<size_t>(ranks_ * width));
  SLUICE_TRY_VOID(groups_.all->all_to_all_v({}, Element::kI64, counts_out_.data(), values_out, counts_in_.data(),
                                            std::vector<int64_t>(static_cast<size_t>(ranks_), width)));
  received_.clear();
  rows_received_ = 0;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const auto counts = counts_in_.begin() + rank * width;
    const int64_t tokens = counts[own_experts_.count];
    if (tokens > capacity_) {
      return Error{
          ErrorCode::kExhausted,
          fmt::format("rank {} has {} tokens in a step, and --deepep-mode low_latency takes at most {} of a rank "
                      "(SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK)",
                      rank, tokens, capacity_)};
    }
    const int64_t rows = std::accumulate(counts, counts + own_experts_.count, int64_t{0});
    received_.push_back(rows);
    rows_received_ += rows;
  }
  return {};
}

void LowLatency::plan_slab(const kernels::Context& context) {
  std::vector<int32_t> starts, next;
  for (int64_t e = 0; e < own_experts_.count; ++e) starts.push_back(static_cast<int32_t>(e * expert_rows_));
  next = starts;
  slab_places_.clear();
  slab_ids_.clear();
  auto count = counts_in_.begin();
  for (int64_t rank = 0; rank < ranks_; ++rank, ++count) {
    for (int64_t e = 0; e < own_experts_.count; ++e, ++count) {
      slab_ids_.insert(slab_ids_.end(), static_cast<size_t>(*count), static_cast<int32_t>(own_experts_.first + e));
      for (int64_t i = 0; i < *count; ++i) slab_places_.push_back(next[static_cast<size_t>(e)]++);
    }
  }
  backend_.copy_to_device(context, starts_, starts.data(), starts.size() * sizeof(int32_t));
  backend_.copy_to_device(context, device_slab_places_, slab_places_.data(), slab_places_.size() * sizeof(int32_t));
  backend_.copy_to_device(context, device_slab_ids_, slab_ids_.data(), slab_ids_.size() * sizeof(int32_t));
}

Result<void> LowLatency::agree(const kernels::Context& context, const Tokens& own, bool /*exact*/) {
  own_ = own;
  plan_rows(context);
  SLUICE_TRY_VOID(exchange_counts());
  plan_slab(context);
  return {};
}

Result<Tokens> LowLatency::dispatch(const kernels::Context& context) {
  backend_.copy_to_device(context, device_places_, places_.data(), places_.size() * sizeof(int32_t));
  backend_.scatter_rows(context, {.in = payload_.pack(context, own_.x, own_.n),
                                  .rows = device_places_,
                                  .out = send_,
                                  .dtype = payload_.dtype(),
                                  .n = own_.n,
                                  .copies = sizes_.top_k,
                                  .width = payload_.width()});
  SLUICE_TRY_VOID(groups_.all->all_to_all_v(context, parallel::element_of(payload_.dtype()), send_,
                                            times(sent_, payload_.width()), payload_.arrival(arrived_),
                                            times(received_, payload_.width())));
  payload_.unpack(context, arrived_, rows_received_);
  backend_.scatter_rows(context, {.in = arrived_,
                                  .rows = device_slab_places_,
                                  .out = slab_,
                                  .dtype = sizes_.dtype,
                                  .n = rows_received_,
                                  .copies = 1,
                                  .width = sizes_.hidden});
  return Tokens{.x = slab_,
                .ids = device_slab_ids_,
                .n = rows_received_,
                .out = results_,
                .slab_starts = starts_,
                .slab_rows = device_slab_places_};
}

// In the order of each token's experts, so that the sum does not depend on who is fast.
Result<void> LowLatency::combine(const kernels::Context& context) {
  backend_.gather_rows(
      context,
      {.in = results_, .rows = device_slab_places_, .out = leaving_, .n = rows_received_, .width = sizes_.hidden});
  SLUICE_TRY_VOID(groups_.all->all_to_all_v(context, Element::kF32, leaving_, times(received_, sizes_.hidden),
                                            returned_, times(sent_, sizes_.hidden)));
  backend_.combine_rows(context, {.in = returned_,
                                  .rows = device_places_,
                                  .weights = own_.shares,
                                  .out = own_.out,
                                  .n = own_.n,
                                  .copies = sizes_.top_k,
                                  .width = sizes_.hidden});
  return {};
}

}  // namespace sluice::moe
