#include "parallel/collective.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "base/check.h"

namespace sluice::parallel {
namespace {

int64_t sum(std::span<const int64_t> counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

int64_t total(const Collective& call, int size) { return call.counts.empty() ? call.count * size : sum(call.counts); }

int64_t before(const Collective& call, int rank) {
  return call.counts.empty() ? call.count * rank : sum(call.counts.first(static_cast<size_t>(rank)));
}

size_t bytes(const Collective& call, int64_t elements) {
  return static_cast<size_t>(elements) * bytes_of(call.element);
}

bool reduces(Kind kind) { return kind == Kind::kAllReduce || kind == Kind::kReduceScatter; }

}  // namespace

std::string_view to_string(Element element) {
  static constexpr std::array<std::string_view, 7> kNames = {"bytes", "i32", "i64", "f32", "f16", "bf16", "f8_e4m3"};
  const auto at = static_cast<size_t>(element);
  return at < kNames.size() ? kNames[at] : "unknown elements";
}

size_t bytes_of(Element element) {
  switch (element) {
    case Element::kU8:
    case Element::kF8E4M3:
      return 1;
    case Element::kF16:
    case Element::kBf16:
      return 2;
    case Element::kI32:
    case Element::kF32:
      return 4;
    case Element::kI64:
      return 8;
  }
  SLUICE_CHECK(false, "element {}", static_cast<int>(element));
  return 0;
}

Element element_of(tensor::DType dtype) {
  switch (dtype) {
    case tensor::DType::kF32:
      return Element::kF32;
    case tensor::DType::kF16:
      return Element::kF16;
    case tensor::DType::kBf16:
      return Element::kBf16;
    case tensor::DType::kI32:
      return Element::kI32;
    case tensor::DType::kF8E4M3:
      return Element::kF8E4M3;
    default:
      return Element::kU8;
  }
}

std::string_view to_string(Kind kind) {
  static constexpr std::array<std::string_view, 6> kNames = {"barrier",    "broadcast",      "all_reduce",
                                                             "all_gather", "reduce_scatter", "all_to_all"};
  const auto at = static_cast<size_t>(kind);
  return at < kNames.size() ? kNames[at] : "an unknown call";
}

size_t bytes_in(const Collective& call, int rank, int size) {
  switch (call.kind) {
    case Kind::kBarrier:
      return 0;
    case Kind::kBroadcast:
      return rank == call.root ? bytes(call, call.count) : 0;
    case Kind::kAllReduce:
      return bytes(call, call.count);
    case Kind::kAllGather:
      return bytes(call, call.count_of(rank));
    case Kind::kReduceScatter:
    case Kind::kAllToAll:
      return bytes(call, total(call, size));
  }
  return 0;
}

size_t bytes_out(const Collective& call, int rank, int size) {
  switch (call.kind) {
    case Kind::kBarrier:
      return 0;
    case Kind::kBroadcast:
      return rank == call.root ? 0 : bytes(call, call.count);
    case Kind::kAllReduce:
      return bytes(call, call.count);
    case Kind::kAllGather:
      return bytes(call, total(call, size));
    case Kind::kReduceScatter:
      return bytes(call, call.count_of(rank));
    case Kind::kAllToAll:
      return bytes(call, sum(call.recv_counts));
  }
  return 0;
}

Range range_to(const Collective& call, int rank, int to, int size) {
  if (call.kind == Kind::kReduceScatter || call.kind == Kind::kAllToAll) {
    return {bytes(call, before(call, to)), bytes(call, call.count_of(to))};
  }
  return {0, bytes_in(call, rank, size)};
}

Range range_from(const Collective& call, int rank, int from, int /*size*/) {
  switch (call.kind) {
    case Kind::kBroadcast:
      return {0, from == call.root && rank != call.root ? bytes(call, call.count) : 0};
    case Kind::kAllGather:
      return {bytes(call, before(call, from)), bytes(call, call.count_of(from))};
    case Kind::kAllToAll:
      return {bytes(call, sum(call.recv_counts.first(static_cast<size_t>(from)))),
              bytes(call, call.recv_counts[static_cast<size_t>(from)])};
    default:
      return {};
  }
}

CallHeader header_of(const Collective& call, uint64_t sequence, int size) {
  CallHeader header{
      .sequence = sequence, .root = call.root, .kind = call.kind, .element = call.element, .reduction = call.reduction};
  // What one rank sends to another in all_to_all is the business of the two.
  if (call.kind != Kind::kAllToAll) {
    header.elements = total(call, call.counts.empty() ? 1 : size);
    header.shape =
        XXH3_64bits_withSeed(call.counts.data(), call.counts.size_bytes(), static_cast<uint64_t>(call.count));
  }
  return header;
}

std::string to_string(const CallHeader& header) {
  std::string text = fmt::format("{} #{}", to_string(header.kind), header.sequence);
  const std::string elements = fmt::format("{} {}", header.elements, to_string(header.element));
  switch (header.kind) {
    case Kind::kBarrier:
      return text;
    case Kind::kBroadcast:
      return text + fmt::format(" ({} from {})", elements, header.root);
    case Kind::kAllReduce:
    case Kind::kReduceScatter:
      return text + fmt::format(" ({} of {})", header.reduction == Reduction::kMax ? "max" : "sum", elements);
    case Kind::kAllGather:
      return text + fmt::format(" ({})", elements);
    default:
      return text + fmt::format(" ({})", to_string(header.element));
  }
}

Result<void> check_call(const Collective& call, int rank, int size) {
  const auto refuse = [&](std::string what) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("{} on rank {}: {}", to_string(call.kind), rank, what)};
  };
  if (call.root < 0 || call.root >= size) return refuse(fmt::format("root {} of {} ranks", call.root, size));
  if (call.count < 0) return refuse(fmt::format("{} elements", call.count));
  const bool of_all = call.kind == Kind::kAllToAll || !call.counts.empty();
  if (of_all && std::ssize(call.counts) != size) {
    return refuse(fmt::format("{} counts for {} ranks", call.counts.size(), size));
  }
  if (call.kind == Kind::kAllToAll && std::ssize(call.recv_counts) != size) {
    return refuse(fmt::format("{} counts to receive from {} ranks", call.recv_counts.size(), size));
  }
  for (const auto counts : {call.counts, call.recv_counts}) {
    if (!counts.empty() && std::ranges::min(counts) < 0)
      return refuse(fmt::format("{} elements", std::ranges::min(counts)));
  }
  if (reduces(call.kind) && call.element == Element::kF8E4M3) return refuse("f8_e4m3 has no reduction");
  return {};
}

std::string list_ranks(std::span<const int> ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

Result<void> check_agreement(std::string_view group, std::span<const CallHeader> headers, std::span<const int> names) {
  if (std::ranges::all_of(headers, [&](const CallHeader& h) { return h == headers[0]; })) return {};
  std::string text = fmt::format("group {}: ranks do not agree on their call:", group);
  std::vector<bool> told(headers.size());
  std::string_view separator = " ";
  for (size_t i = 0; i < headers.size(); ++i) {
    if (told[i]) continue;
    std::vector<int> same;
    for (size_t j = i; j < headers.size(); ++j) {
      if (headers[j] != headers[i]) continue;
      told[j] = true;
      same.push_back(names[j]);
    }
    // Equal in all that people read, and yet not equal: the counts of the ranks.
    const bool alike = std::ranges::any_of(headers, [&](const CallHeader& other) {
      return other != headers[i] && to_string(other) == to_string(headers[i]);
    });
    text += fmt::format("{}{} {} for {}{}", separator, list_ranks(same), same.size() == 1 ? "asks" : "ask",
                        to_string(headers[i]), alike ? fmt::format(", shape {:016x}", headers[i].shape) : "");
    separator = "; ";
  }
  return Error{ErrorCode::kProtocol, std::move(text)};
}

Result<void> check_all_to_all(std::string_view group, uint64_t sequence,
                              std::span<const std::span<const int64_t>> counts, std::span<const int> names) {
  const size_t size = counts.size();
  for (size_t from = 0; from < size; ++from) {
    for (size_t to = 0; to < size; ++to) {
      const int64_t sends = counts[from][to];
      const int64_t expects = counts[to][size + from];
      if (sends == expects) continue;
      return Error{ErrorCode::kProtocol,
                   fmt::format("group {}: ranks do not agree in all_to_all #{}: rank {} sends {} elements to rank {}, "
                               "which expects {}",
                               group, sequence, names[from], sends, names[to], expects)};
    }
  }
  return {};
}

}  // namespace sluice::parallel
