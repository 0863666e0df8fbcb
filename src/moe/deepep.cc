#include "moe/deepep.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"

namespace sluice::moe {

using parallel::Element;

DeepEp::DeepEp(const kernels::Backend& backend, const parallel::Groups& groups, const Sizes& sizes, bool fp8)
    : backend_(backend),
      groups_(groups),
      sizes_(sizes),
      ranks_(groups.layout.tp_size),
      memory_(backend),
      payload_(backend, sizes, fp8) {
  SLUICE_CHECK(groups.layout.ep_size == ranks_, "{} parts of the experts on {} ranks", groups.layout.ep_size, ranks_);
}

Result<void> DeepEp::allocate(int64_t max_tokens, int64_t max_received) {
  max_received_ = max_received;
  room_ = max_tokens * sizes_.room;
  const int64_t most_sent = max_tokens * std::min(ranks_, sizes_.top_k);
  const auto row_bytes = sizes_.hidden * static_cast<int64_t>(tensor::block_bytes(sizes_.dtype));
  SLUICE_TRY(device_places_, memory_.take<int32_t>(max_tokens * ranks_));
  SLUICE_TRY_VOID(payload_.allocate(max_tokens, max_received));
  SLUICE_TRY(send_, memory_.take<char>(most_sent * payload_.row_bytes()));
  SLUICE_TRY(receive_, memory_.take<char>(backend_.padded_rows(max_received) * row_bytes));
  SLUICE_TRY(receive_ids_, memory_.take<int32_t>(max_received * sizes_.top_k));
  SLUICE_TRY(receive_shares_, memory_.take<float>(max_received * sizes_.top_k));
  SLUICE_TRY(results_, memory_.take<float>(backend_.padded_rows(max_received) * sizes_.hidden));
  SLUICE_TRY(returned_, memory_.take<float>(most_sent * sizes_.hidden));
  return {};
}

std::vector<int64_t> DeepEp::times(const std::vector<int64_t>& rows, int64_t width) const {
  std::vector<int64_t> values = rows;
  for (int64_t& value : values) value *= width;
  return values;
}

void DeepEp::plan_rows(const kernels::Context& context) {
  const auto pairs = static_cast<size_t>(own_.n * sizes_.top_k);
  ids_.resize(pairs);
  shares_.resize(pairs);
  backend_.copy_to_host(context, ids_.data(), own_.ids, pairs * sizeof(int32_t));
  backend_.copy_to_host(context, shares_.data(), own_.shares, pairs * sizeof(float));
  backend_.synchronize(context);

  places_.assign(static_cast<size_t>(own_.n * ranks_), -1);
  sent_.assign(static_cast<size_t>(ranks_), 0);
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const parallel::Slice experts = parallel::part_of(sizes_.experts, {rank, ranks_});
    for (int64_t i = 0; i < own_.n; ++i) {
      const auto begin = ids_.begin() + i * sizes_.top_k;
      const bool goes = std::any_of(begin, begin + sizes_.top_k,
                                    [&](int32_t id) { return id >= experts.first && id < experts.end(); });
      if (goes)
        places_[static_cast<size_t>(i * ranks_ + rank)] = static_cast<int32_t>(sent_[static_cast<size_t>(rank)]++);
    }
  }
  // Rows lie in the order of the receivers.
  rows_sent_ = 0;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    for (int64_t i = 0; i < own_.n; ++i) {
      int32_t& place = places_[static_cast<size_t>(i * ranks_ + rank)];
      if (place >= 0) place += static_cast<int32_t>(rows_sent_);
    }
    rows_sent_ += sent_[static_cast<size_t>(rank)];
  }
}

Result<void> DeepEp::exchange_counts() {
  all_counts_.resize(static_cast<size_t>(ranks_ * ranks_));
  SLUICE_TRY_VOID(groups_.all->all_gather({}, Element::kI64, sent_.data(), all_counts_.data(), ranks_));
  received_.clear();
  for (int64_t from = 0; from < ranks_; ++from) {
    received_.push_back(all_counts_[static_cast<size_t>(from * ranks_ + groups_.layout.tp_rank)]);
  }
  rows_received_ = std::accumulate(received_.begin(), received_.end(), int64_t{0});
  SLUICE_CHECK(rows_received_ <= max_received_, "{} rows for this rank's experts, where at most {} were planned",
               rows_received_, max_received_);
  return {};
}

Result<void> DeepEp::exchange_routes(const kernels::Context& context) {
  const int64_t k = sizes_.top_k;
  routes_out_.resize(static_cast<size_t>(rows_sent_ * 2 * k));
  routes_in_.resize(static_cast<size_t>(rows_received_ * 2 * k));
  for (int64_t i = 0; i < own_.n; ++i) {
    for (int64_t rank = 0; rank < ranks_; ++rank) {
      const int32_t place = places_[static_cast<size_t>(i * ranks_ + rank)];
      if (place < 0) continue;
      int32_t* route = routes_out_.data() + place * 2 * k;
      std::copy_n(ids_.begin() + i * k, k, route);
      std::memcpy(route + k, shares_.data() + i * k, static_cast<size_t>(k) * sizeof(float));
    }
  }
  SLUICE_TRY_VOID(groups_.all->all_to_all_v({}, Element::kI32, routes_out_.data(), times(sent_, 2 * k),
                                            routes_in_.data(), times(received_, 2 * k)));
  std::vector<int32_t> ids(static_cast<size_t>(rows_received_ * k));
  std::vector<float> shares(ids.size());
  const parallel::Slice own = parallel::part_of(sizes_.experts, {groups_.layout.tp_rank, ranks_});
  pieces_.assign(1, 0);
  int64_t pairs = 0;  // of the last piece
  for (int64_t row = 0; row < rows_received_; ++row) {
    const int32_t* route = routes_in_.data() + row * 2 * k;
    std::copy_n(route, k, ids.begin() + row * k);
    std::memcpy(shares.data() + row * k, route + k, static_cast<size_t>(k) * sizeof(float));
    const int64_t here = std::count_if(route, route + k, [&](int32_t id) { return id >= own.first && id < own.end(); });
    if (room_ > 0 && pairs + here > room_) {
      pieces_.push_back(0);
      pairs = 0;
    }
    pieces_.back() += 1;
    pairs += here;
  }
  backend_.copy_to_device(context, receive_ids_, ids.data(), ids.size() * sizeof(int32_t));
  backend_.copy_to_device(context, receive_shares_, shares.data(), shares.size() * sizeof(float));
  return {};
}

Result<void> DeepEp::agree(const kernels::Context& context, const Tokens& own, bool /*exact*/) {
  own_ = own;
  plan_rows(context);
  SLUICE_TRY_VOID(exchange_counts());
  return exchange_routes(context);
}

Result<Tokens> DeepEp::dispatch(const kernels::Context& context) {
  backend_.copy_to_device(context, device_places_, places_.data(), places_.size() * sizeof(int32_t));
  backend_.scatter_rows(context, {.in = payload_.pack(context, own_.x, own_.n),
                                  .rows = device_places_,
                                  .out = send_,
                                  .dtype = payload_.dtype(),
                                  .n = own_.n,
                                  .copies = ranks_,
                                  .width = payload_.width()});
  SLUICE_TRY_VOID(groups_.all->all_to_all_v(context, parallel::element_of(payload_.dtype()), send_,
                                            times(sent_, payload_.width()), payload_.arrival(receive_),
                                            times(received_, payload_.width())));
  payload_.unpack(context, receive_, rows_received_);
  backend_.clear(context, results_, static_cast<size_t>(rows_received_ * sizes_.hidden) * sizeof(float));
  Tokens received{.x = receive_, .ids = receive_ids_, .shares = receive_shares_, .n = rows_received_, .out = results_};
  if (pieces_.size() > 1) received.pieces = pieces_;
  return received;
}

// In the order of the ranks, so that the sum does not depend on who is fast.
Result<void> DeepEp::combine(const kernels::Context& context) {
  SLUICE_TRY_VOID(groups_.all->all_to_all_v(context, Element::kF32, results_, times(received_, sizes_.hidden),
                                            returned_, times(sent_, sizes_.hidden)));
  backend_.combine_rows(context, {.in = returned_,
                                  .rows = device_places_,
                                  .out = own_.out,
                                  .n = own_.n,
                                  .copies = ranks_,
                                  .width = sizes_.hidden});
  return {};
}

}  // namespace sluice::moe
