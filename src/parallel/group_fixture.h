// What the tests of communicators share: ranks as threads, and random calls whose results are known without any
// communicator.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "parallel/communicator.h"
#include "parallel/reduce.h"
#include "parallel/registry.h"
#include "tensor/dtype.h"

#define ASSERT_OK(expression)                                         \
  do {                                                                \
    const auto& sluice_result = (expression);                         \
    ASSERT_TRUE(sluice_result.ok()) << sluice_result.error().message; \
  } while (false)
#define EXPECT_OK(expression)                                         \
  do {                                                                \
    const auto& sluice_result = (expression);                         \
    EXPECT_TRUE(sluice_result.ok()) << sluice_result.error().message; \
  } while (false)

namespace sluice::parallel {

using Ranks = std::vector<std::unique_ptr<Communicator>>;

inline void PrintTo(const CommunicatorRow& row, std::ostream* out) { *out << row.name; }

inline Ranks make_ranks(const CommunicatorRow& row, int size, const GroupOptions& options = {}) {
  auto made = row.make_group(size, options);
  EXPECT_TRUE(made.ok()) << made.error().message;
  return std::move(made).value();
}

// `body` on a thread for each rank.
inline void on_each(Ranks& ranks, const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&body, &rank] { body(*rank); });
  for (auto& thread : threads) thread.join();
}

// Values of one element type, of which calls send any piece: small floats with all bits of their mantissa, so that the
// order of a sum shows.
inline std::vector<std::byte> random_values(Element element, size_t bytes, Rng& rng) {
  std::vector<std::byte> pool(bytes);
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    uint64_t word = rng.next();
    if (element == Element::kF32) {
      const float values[2] = {static_cast<float>(rng.uniform() - 0.5), static_cast<float>(rng.uniform() * 100)};
      std::memcpy(&word, values, 8);
    } else if (element == Element::kF16 || element == Element::kBf16) {
      // Signs and mantissas at random, exponents around 1.
      const uint64_t exponent = element == Element::kF16 ? 0x3800 : 0x3f00;
      word = (word & ~0x7c007c007c007c00) | exponent * 0x0001000100010001;
    }
    std::memcpy(pool.data() + at, &word, 8);
  }
  return pool;
}

// What `reduce` must give, one element at a time.
inline void reduce_naively(Element element, Reduction reduction, const std::vector<const std::byte*>& inputs,
                           std::byte* out, size_t bytes) {
  const auto each = [&]<class T, class Wide>(T, Wide, auto widen, auto narrow) {
    for (size_t at = 0; at < bytes; at += sizeof(T)) {
      Wide sum{};
      for (size_t rank = 0; rank < inputs.size(); ++rank) {
        T value;
        std::memcpy(&value, inputs[rank] + at, sizeof(T));
        const Wide wide = widen(value);
        if (rank == 0) {
          sum = wide;
        } else if (reduction == Reduction::kMax) {
          sum = std::max(sum, wide);
        } else {
          sum = static_cast<Wide>(sum + wide);
        }
      }
      const T result = narrow(sum);
      std::memcpy(out + at, &result, sizeof(T));
    }
  };
  const auto same = [](auto v) { return v; };
  switch (element) {
    case Element::kI32:  // sums wrap: unsigned, but the largest is that of signed numbers
      if (reduction == Reduction::kMax) return each(int32_t{}, int32_t{}, same, same);
      return each(uint32_t{}, uint32_t{}, same, same);
    case Element::kI64:
      if (reduction == Reduction::kMax) return each(int64_t{}, int64_t{}, same, same);
      return each(uint64_t{}, uint64_t{}, same, same);
    case Element::kF32:
      return each(float{}, float{}, same, same);
    case Element::kF16:
      return each(uint16_t{}, float{}, tensor::f16_to_float, float_to_f16);
    case Element::kBf16:
      return each(uint16_t{}, float{}, tensor::bf16_to_float, tensor::float_to_bf16);
    default:
      return each(uint8_t{}, uint8_t{}, same, same);
  }
}

// Of random calls: 1 MiB, or what a soak asks for.
inline size_t largest_bytes() {
  const char* text = std::getenv("SLUICE_TEST_LARGEST_BYTES");
  return text ? std::strtoull(text, nullptr, 10) : size_t{1} << 20;
}

// How many of them: `otherwise`, or what a soak asks for.
inline int random_calls(int otherwise) {
  const char* text = std::getenv("SLUICE_TEST_CALLS");
  return text ? std::atoi(text) : otherwise;
}

// The same calls on every rank from the same seed, with sizes spread evenly over their logarithm and zero among them.
// Every rank knows what the others send, finds out the result by itself and compares.
class RandomCalls {
 public:
  RandomCalls(uint64_t seed, int size, size_t largest_bytes)
      : rng_(seed), size_(size), largest_(largest_bytes), offsets_(static_cast<size_t>(size)) {
    for (size_t i = 0; i < pools_.size(); ++i) {
      pools_[i] = random_values(static_cast<Element>(i), largest_ + kSpread, rng_);
    }
  }

  // False if the call failed or gave something else; the test has failed then.
  bool next(Communicator& comm) {
    const Draw draw = draw_one(comm.rank());
    const Collective& call = draw.call;
    const int rank = comm.rank();
    const size_t in_bytes = bytes_in(call, rank, size_);
    const size_t out_bytes = bytes_out(call, rank, size_);
    const std::byte* in = input(call.element, rank);
    std::byte* lent = nullptr;
    if (draw.lent) {
      auto memory = comm.buffer({}, in_bytes);
      if (!memory.ok()) return failed(call, memory.error().message);
      lent = static_cast<std::byte*>(*memory);
      std::memcpy(lent, in, in_bytes);
      in = lent;
    }
    // What lies behind stays as it is.
    result_.assign(out_bytes + kGuard, std::byte{0xa5});
    std::byte* out = result_.data();
    if (draw.in_place && call.kind == Kind::kAllReduce) {
      if (lent) out = lent;
      if (!lent) std::memcpy(out, in, in_bytes), in = out;
    } else if (draw.in_place && call.kind == Kind::kAllGather && !lent) {
      std::byte* const place = out + range_from(call, rank, rank, size_).begin;
      std::memcpy(place, in, in_bytes);
      in = place;
    }
    if (const auto done = make(comm, call, in, out); !done.ok()) return failed(call, done.error().message);
    return compare(call, rank, out);
  }

 private:
  static constexpr size_t kSpread = 4096;
  static constexpr size_t kGuard = 64;

  struct Draw {
    Collective call;
    bool lent = false;
    bool in_place = false;
  };

  int64_t draw_count(size_t largest_bytes, Element element) {
    if (rng_.below(8) == 0) return 0;
    return static_cast<int64_t>(std::exp(rng_.uniform() * std::log(static_cast<double>(largest_bytes)))) /
           static_cast<int64_t>(bytes_of(element));
  }

  // As many draws on each rank, whatever it is.
  Draw draw_one(int rank) {
    Draw draw;
    Collective& call = draw.call;
    call.kind = static_cast<Kind>(rng_.below(6));
    call.element = static_cast<Element>(rng_.below(pools_.size()));
    if ((call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter) && call.element == Element::kF8E4M3) {
      call.element = Element::kF32;
    }
    call.reduction = rng_.below(4) == 0 ? Reduction::kMax : Reduction::kSum;
    draw.lent = rng_.below(3) == 0;
    draw.in_place = rng_.below(3) == 0;
    for (auto& offset : offsets_) offset = rng_.below(kSpread / 8) * 8;
    const bool reduces_or_casts = call.kind == Kind::kAllReduce || call.kind == Kind::kBroadcast;
    const size_t n = static_cast<size_t>(size_);
    const size_t share = reduces_or_casts ? largest_ : largest_ / n;
    call.count = call.kind == Kind::kBarrier ? 0 : draw_count(share, call.element);
    call.root = call.kind == Kind::kBroadcast ? static_cast<int>(rng_.below(n)) : 0;
    const bool unequal = call.kind == Kind::kAllToAll || (!reduces_or_casts && rng_.below(2) == 0);
    matrix_.assign(n * n, 0);
    for (auto& count : matrix_) count = draw_count(share, call.element);
    const auto me = static_cast<size_t>(rank);
    received_.clear();
    for (size_t from = 0; from < n; ++from) received_.push_back(matrix_[from * n + me]);
    if (call.kind == Kind::kAllToAll) {
      call.count = 0;
      call.counts = std::span(matrix_).subspan(me * n, n);
      call.recv_counts = received_;
    } else if (unequal && call.kind != Kind::kBarrier) {
      call.counts = std::span(matrix_).first(n);
    }
    return draw;
  }

  const std::byte* input(Element element, int rank) const {
    return pools_[static_cast<size_t>(element)].data() + offsets_[static_cast<size_t>(rank)];
  }

  static Result<void> make(Communicator& comm, const Collective& call, const void* in, std::byte* out) {
    switch (call.kind) {
      case Kind::kBarrier:
        return comm.barrier();
      case Kind::kBroadcast:
        if (comm.rank() != call.root) return comm.broadcast({}, call.element, out, call.count, call.root);
        return comm.broadcast({}, call.element, const_cast<void*>(in), call.count, call.root);
      case Kind::kAllReduce:
        return comm.all_reduce({}, call.element, in, out, call.count, call.reduction);
      case Kind::kAllGather:
        if (!call.counts.empty()) return comm.all_gather_v({}, call.element, in, out, call.counts);
        return comm.all_gather({}, call.element, in, out, call.count);
      case Kind::kReduceScatter:
        if (!call.counts.empty()) return comm.reduce_scatter_v({}, call.element, in, out, call.counts, call.reduction);
        return comm.reduce_scatter({}, call.element, in, out, call.count, call.reduction);
      case Kind::kAllToAll:
        return comm.all_to_all_v({}, call.element, in, call.counts, out, call.recv_counts);
    }
    return {};
  }

  bool compare(const Collective& call, int rank, const std::byte* out) {
    const size_t out_bytes = bytes_out(call, rank, size_);
    expected_.assign(out_bytes, std::byte{0});
    if (call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter) {
      std::vector<const std::byte*> inputs;
      for (int from = 0; from < size_; ++from) {
        inputs.push_back(input(call.element, from) + range_to(call, from, rank, size_).begin);
      }
      reduce_naively(call.element, call.reduction, inputs, expected_.data(), out_bytes);
    }
    for (int from = 0; from < size_; ++from) {
      const Range here = range_from(call, rank, from, size_);
      if (here.bytes > 0)
        std::memcpy(expected_.data() + here.begin, input(call.element, from) + sent_before(call, rank, from),
                    here.bytes);
    }
    if (out_bytes > 0 && std::memcmp(out, expected_.data(), out_bytes) != 0) return failed(call, "the result differs");
    if (out == result_.data() && std::count(result_.end() - kGuard, result_.end(), std::byte{0xa5}) != kGuard) {
      return failed(call, "it wrote beyond its result");
    }
    return true;
  }

  // Where what `from` has for `rank` begins in its input.
  size_t sent_before(const Collective& call, int rank, int from) const {
    if (call.kind != Kind::kAllToAll) return 0;
    const auto row = std::span(matrix_).subspan(static_cast<size_t>(from) * static_cast<size_t>(size_));
    const int64_t elements = std::accumulate(row.begin(), row.begin() + rank, int64_t{0});
    return static_cast<size_t>(elements) * bytes_of(call.element);
  }

  bool failed(const Collective& call, std::string_view what) {
    ADD_FAILURE() << to_string(header_of(call, 0, size_)) << " with " << size_ << " ranks: " << what;
    return false;
  }

  Rng rng_;
  const int size_;
  const size_t largest_;
  std::array<std::vector<std::byte>, 7> pools_;
  // Of the latest draw.
  std::vector<size_t> offsets_;
  std::vector<int64_t> matrix_;  // [from, to]; unequal counts of other calls are its first row
  std::vector<int64_t> received_;

  std::vector<std::byte> result_;
  std::vector<std::byte> expected_;
};

}  // namespace sluice::parallel
