// Which part of a model each rank of an instance has, as pure functions of the sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"

namespace sluice::parallel {

// A rank's place in a group.
struct Place {
  int64_t rank = 0;
  int64_t size = 1;
  bool operator==(const Place&) const = default;
};

// [first, first + count).
struct Slice {
  int64_t first = 0;
  int64_t count = 0;
  int64_t end() const { return first + count; }
  bool operator==(const Slice&) const = default;
};

// The part of `total` things of one place: the parts follow each other, and the first ones are one larger where they
// are not equal.
Slice part_of(int64_t total, Place place);

// How tokens reach the experts that they are routed to.
enum class MoeAllToAll : uint8_t {
  kNone,    // every rank has all tokens of the step and adds up what its experts make of them
  kDeepEp,  // rows go to the ranks of their experts, and what those make of them comes back
};

// The sizes of an instance, and one rank's place in it. Ranks are numbered so that those of an attention group follow
// each other, as do those that share an expert.
struct Layout {
  int64_t tp_rank = 0;
  int64_t tp_size = 1;  // ranks of the instance
  int64_t dp_size = 1;  // attention groups, each with requests and a KV cache of its own; divides tp_size
  int64_t ep_size = 1;  // parts that the experts of a layer are divided into; divides tp_size
  MoeAllToAll a2a = MoeAllToAll::kNone;
  bool dense_data_parallel = false;  // dense FFNs are whole on every rank (--moe-dense-tp-size 1)
  bool dp_lm_head = false;           // the head is divided within an attention group only

  bool operator==(const Layout&) const = default;

  bool dp_attention() const { return dp_size > 1; }

  // Of all ranks.
  Place tp() const { return {tp_rank, tp_size}; }
  // Within the ranks that compute attention of the same tokens, each with some of the heads.
  Place attention_tp() const { return {tp_rank % attention_tp_size(), attention_tp_size()}; }
  int64_t attention_tp_size() const { return tp_size / dp_size; }
  // Among the attention groups: those that have the same heads of different tokens.
  Place attention_dp() const { return {tp_rank / attention_tp_size(), dp_size}; }
  // Among the parts of the experts, and within the ranks that share an expert.
  Place experts() const { return {tp_rank / expert_tp_size(), ep_size}; }
  Place expert_tp() const { return {tp_rank % expert_tp_size(), expert_tp_size()}; }
  int64_t expert_tp_size() const { return tp_size / ep_size; }
  // Of a dense FFN, of the experts that every token passes, and of the head.
  Place dense_ffn() const { return dense_data_parallel ? Place{} : tp(); }
  Place shared_experts() const { return a2a == MoeAllToAll::kNone ? tp() : Place{}; }
  Place head() const { return dp_lm_head ? attention_tp() : tp(); }
  // The first rank of an attention group takes its requests, plans its steps and samples.
  bool leads() const { return attention_tp().rank == 0; }
};

// kBadOption names the flag and the nearest values that are possible.
Result<void> check_layout(const Layout& layout);

// The divisors of `n` next to `wanted`, for messages: at most two, ascending.
std::vector<int64_t> nearest_divisors(int64_t n, int64_t wanted);

}  // namespace sluice::parallel
