// One collective call as a value: what a member of the family carries out, and what the ranks of a group compare before
// any data moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::parallel {

// What a buffer holds. Other than tensor::DType it has what control rows need, and no types of blocks: those move as
// bytes.
enum class Element : uint8_t { kU8, kI32, kI64, kF32, kF16, kBf16, kF8E4M3 };
std::string_view to_string(Element element);
size_t bytes_of(Element element);
// kU8 for types of blocks: count their bytes then.
Element element_of(tensor::DType dtype);

// In rank order, in float32 for kF16 and kBf16, rounded once at the end. Nothing else than copies is defined for
// kF8E4M3.
enum class Reduction : uint8_t { kSum, kMax };

enum class Kind : uint8_t { kBarrier, kBroadcast, kAllReduce, kAllGather, kReduceScatter, kAllToAll };
std::string_view to_string(Kind kind);

// Counts are of elements.
struct Collective {
  Kind kind = Kind::kBarrier;
  Element element = Element::kU8;
  Reduction reduction = Reduction::kSum;
  int root = 0;
  const void* in = nullptr;
  void* out = nullptr;
  int64_t count = 0;                     // of each rank, where `counts` is empty
  std::span<const int64_t> counts;       // kAllGather, kReduceScatter: of each rank. kAllToAll: to each rank
  std::span<const int64_t> recv_counts;  // kAllToAll: from each rank

  int64_t count_of(int rank) const { return counts.empty() ? count : counts[static_cast<size_t>(rank)]; }
};

// Bytes that rank `rank` of `size` reads at `in` and writes at `out`.
size_t bytes_in(const Collective& call, int rank, int size);
size_t bytes_out(const Collective& call, int rank, int size);

// What rank `rank` sends to rank `to`, as a range of bytes of its `in`. What it sends to all is the same range for
// each.
struct Range {
  size_t begin = 0;
  size_t bytes = 0;
};
Range range_to(const Collective& call, int rank, int to, int size);
// Where rank `rank` puts what it gets from rank `from`, as a range of bytes of its `out`; reductions: nowhere.
Range range_from(const Collective& call, int rank, int from, int size);

// What every rank publishes with a call. Equal on all ranks, or nothing moves.
struct CallHeader {
  uint64_t sequence = 0;  // of the group, from 1
  uint64_t shape = 0;     // hash of all that must be equal and stands in no other field
  int64_t elements = 0;   // for people
  int32_t root = 0;
  Kind kind = Kind::kBarrier;
  Element element = Element::kU8;
  Reduction reduction = Reduction::kSum;
  uint8_t unused = 0;
  bool operator==(const CallHeader&) const = default;
};
CallHeader header_of(const Collective& call, uint64_t sequence, int size);
// "all_reduce #12 (sum of 4096 bf16)"
std::string to_string(const CallHeader& header);

// kInvalidArgument: lengths, a root or an element that no rank can mean.
Result<void> check_call(const Collective& call, int rank, int size);
// kProtocol says which ranks ask for what. `names` are the ranks' names, as in Communicator::world_rank().
Result<void> check_agreement(std::string_view group, std::span<const CallHeader> headers, std::span<const int> names);
// kProtocol where what one rank sends is not what another expects. counts[r] is what rank r sends to each rank,
// followed by what it expects from each.
Result<void> check_all_to_all(std::string_view group, uint64_t sequence,
                              std::span<const std::span<const int64_t>> counts, std::span<const int> names);
// "rank 3", "ranks 1, 2, 5"
std::string list_ranks(std::span<const int> ranks);

}  // namespace sluice::parallel
