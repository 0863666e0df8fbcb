// What every way to the experts must do: the sum over a token's experts, each weighted by its share, comes back, and
// the rows that a rank receives are those of its experts and no others. Ranks are threads; the experts multiply a row
// by their number.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <thread>
#include <tuple>

#include "base/rng.h"
#include "moe/dispatcher.h"
#include "parallel/inproc.h"

namespace sluice::moe {
namespace {

constexpr int64_t kHidden = 256;
constexpr int64_t kCapacity = 20;  // tokens of a rank in a slab

struct Way {
  std::string name;
  std::string device;
  parallel::MoeAllToAll a2a;
  DeepEpMode mode;
  bool fp8;
  int64_t ranks;
};
void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

// A rank's tokens in a step, in host memory.
struct Batch {
  int64_t n = 0;
  std::vector<float> x;                         // [n, kHidden]
  std::vector<int32_t> ids;                     // [n, top_k]
  std::vector<float> shares;                    // [n, top_k]
  std::vector<float> want;                      // [n, kHidden] what is to come back
  std::vector<float> error;                     // [n, kHidden] by which it may be off, if rows are in FP8
  std::vector<int32_t> slab_starts, slab_rows;  // of what a rank receives in a slab
  std::vector<int32_t> masked_m;                // [experts of the rank] its rows there, as the device counts them
};

// Half of a row tells its origin, in values that e4m3 has exactly where the largest is 448; the other half are any,
// large and small.
float value_of(int64_t rank, int64_t token, int64_t column) {
  if (column >= kHidden / 2) {
    const uint64_t any = kernels::splitmix64(static_cast<uint64_t>((rank * 1000 + token) * kHidden + column));
    const auto mantissa = static_cast<float>(static_cast<int32_t>(any)) * 0x1p-31f;
    return std::ldexp(mantissa, static_cast<int>(column % 13) - 6);
  }
  const int64_t origin[] = {448, rank, token / 16, token % 16};
  return static_cast<float>(column < 4 ? origin[column] : column % 8);
}
std::pair<size_t, int64_t> origin_of(const float* row) {
  return {static_cast<size_t>(row[1]), static_cast<int64_t>(row[2]) * 16 + static_cast<int64_t>(row[3])};
}

// By how much the values of a row in e4m3 may be off: half a step of three bits of mantissa, which are a fixed step
// below 2^-6 of the unit in which the largest of the 128 is 448.
std::vector<float> fp8_errors(int64_t rank, int64_t token) {
  std::vector<float> errors(kHidden);
  float top = 0;
  for (int64_t j = kHidden / 2; j < kHidden; ++j) top = std::max(top, std::abs(value_of(rank, token, j)));
  for (int64_t j = kHidden / 2; j < kHidden; ++j) {
    const float value = std::abs(value_of(rank, token, j));
    errors[static_cast<size_t>(j)] = std::max(value * 0x1p-4f, top / 448 * 0x1p-10f) * (1 + 0x1p-18f);
  }
  return errors;
}

enum class Routing : uint8_t { kRandom, kAllToOne, kSomeRanksEmpty, kAllEmpty };

Batch draw(Rng& rng, Routing routing, int64_t rank, const Sizes& sizes, int64_t max_tokens) {
  Batch batch;
  const bool empty = routing == Routing::kAllEmpty || (routing == Routing::kSomeRanksEmpty && rank % 2 == 0);
  batch.n = empty ? 0 : static_cast<int64_t>(rng.below(static_cast<uint64_t>(max_tokens) + 1));
  std::vector<int32_t> all(static_cast<size_t>(sizes.experts));
  for (int64_t i = 0; i < batch.n; ++i) {
    for (int64_t j = 0; j < kHidden; ++j) batch.x.push_back(value_of(rank, i, j));
    for (size_t e = 0; e < all.size(); ++e) all[e] = static_cast<int32_t>(e);
    if (routing != Routing::kAllToOne) std::shuffle(all.begin(), all.end(), rng);
    float sum = 0;
    for (int64_t k = 0; k < sizes.top_k; ++k) {
      // A router gives no expert where it has nothing but NaN.
      const int32_t id = routing == Routing::kRandom && rng.below(20) == 0 ? -1 : all[static_cast<size_t>(k)];
      const float share = static_cast<float>(rng.uniform());
      batch.ids.push_back(id);
      batch.shares.push_back(share);
      sum += share * static_cast<float>(id + 1);
    }
    for (int64_t j = 0; j < kHidden; ++j) batch.want.push_back(sum * value_of(rank, i, j));
    for (const float error : fp8_errors(rank, i)) batch.error.push_back(sum * error);
  }
  return batch;
}

class Rank {
 public:
  Rank(const Way& way, parallel::Communicator& world, int64_t number, const Sizes& sizes, int64_t max_tokens)
      : sizes_(sizes), backend_(*kernels::make_backend(way.device, 1)), stream_(backend_->make_stream()) {
    const bool sends = way.a2a != parallel::MoeAllToAll::kNone;
    auto groups = parallel::make_groups(world, {.tp_rank = number,
                                                .tp_size = way.ranks,
                                                .dp_size = sends ? way.ranks : 1,
                                                .ep_size = way.ranks,
                                                .a2a = way.a2a});
    EXPECT_TRUE(groups.ok());
    groups_ = std::move(*groups);
    dispatcher_ =
        make_dispatcher(*backend_, &groups_, sizes, {.mode = way.mode, .capacity = kCapacity, .fp8 = way.fp8});
    EXPECT_TRUE(dispatcher_->allocate(max_tokens, max_tokens * way.ranks).ok());
  }
  ~Rank() { free(); }

  kernels::Context context() const { return {backend_.get(), stream_.get()}; }
  parallel::Slice own_experts() const { return parallel::part_of(sizes_.experts, groups_.layout.experts()); }
  const parallel::Groups& groups() const { return groups_; }

  // What comes to this rank's experts: rows of tokens with all their experts, or in a slab rows of one expert each.
  Result<Batch> dispatch(const Batch& batch, bool extend) {
    free();
    own_ = {.x = put(batch.x),
            .ids = put(batch.ids),
            .shares = put(batch.shares),
            .n = batch.n,
            .out = put(std::vector<float>(batch.x.size()))};
    SLUICE_TRY_VOID(dispatcher_->agree(context(), own_, extend));
    SLUICE_TRY(received_, dispatcher_->dispatch(context()));
    const bool in_slab = received_.slab_rows != nullptr;
    Batch got;
    got.n = received_.n;
    got.ids = get(received_.ids, got.n * (in_slab ? 1 : sizes_.top_k));
    if (!in_slab) {
      got.x = get(static_cast<const float*>(received_.x), got.n * kHidden);
      got.shares = get(received_.shares, got.n * sizes_.top_k);
      return got;
    }
    const std::vector<float> slab = get(static_cast<const float*>(received_.x), dispatcher_->slab_rows() * kHidden);
    got.slab_starts = get(received_.slab_starts, own_experts().count);
    got.slab_rows = get(received_.slab_rows, got.n);
    got.masked_m = count_on_device();
    for (const int32_t row : got.slab_rows) {
      got.x.insert(got.x.end(), slab.begin() + row * kHidden, slab.begin() + (row + 1) * kHidden);
    }
    return got;
  }
  const Tokens& received() const { return received_; }

  // The experts compute, and what comes back is returned.
  Result<std::vector<float>> combine(const Batch& got) {
    const bool in_slab = received_.slab_rows != nullptr;
    std::vector<float> out = get(received_.out, (in_slab ? dispatcher_->slab_rows() : got.n) * kHidden);
    const int64_t copies = in_slab ? 1 : sizes_.top_k;
    for (int64_t i = 0; i < got.n * copies; ++i) {
      const auto at = static_cast<size_t>(i);
      const int32_t id = got.ids[at];
      if (id < own_experts().first || id >= own_experts().end()) continue;
      const float factor = static_cast<float>(id + 1) * (in_slab ? 1 : got.shares[at]);
      const int64_t row = i / copies, to = in_slab ? got.slab_rows[at] : row;
      for (int64_t j = 0; j < kHidden; ++j) {
        float& value = out[static_cast<size_t>(to * kHidden + j)];
        value = (in_slab ? 0 : value) + factor * got.x[static_cast<size_t>(row * kHidden + j)];
      }
    }
    backend_->copy_to_device(context(), received_.out, out.data(), out.size() * sizeof(float));
    SLUICE_TRY_VOID(dispatcher_->combine(context()));
    return get(static_cast<const float*>(own_.out), own_.n * kHidden);
  }

 private:
  template <class T>
  T* put(const std::vector<T>& values) {
    const size_t bytes = std::max<size_t>(1, values.size()) * sizeof(T);
    void* memory = backend_->allocate(bytes).value();
    held_.emplace_back(memory, bytes);
    backend_->copy_to_device(context(), memory, values.data(), values.size() * sizeof(T));
    backend_->synchronize(context());
    return static_cast<T*>(memory);
  }
  template <class T>
  std::vector<T> get(const T* memory, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    backend_->copy_to_host(context(), values.data(), memory, values.size() * sizeof(T));
    backend_->synchronize(context());
    return values;
  }
  // As MoeFfn has them counted, of what dispatch() has left in device memory.
  std::vector<int32_t> count_on_device() {
    const int64_t experts = own_experts().count;
    const std::vector<int32_t> unset(static_cast<size_t>(experts), -1);
    auto* const counts = put(unset);
    backend_->sort_by_expert(context(), {.ids = received_.ids,
                                         .starts = put(unset),
                                         .counts = counts,
                                         .rows = put(std::vector<int32_t>(static_cast<size_t>(received_.n))),
                                         .n_pairs = received_.n,
                                         .first = own_experts().first,
                                         .experts = experts});
    return get(counts, experts);
  }
  void free() {
    for (const auto& [memory, bytes] : held_) backend_->release(memory, bytes);
    held_.clear();
  }

  const Sizes sizes_;
  const std::unique_ptr<kernels::Backend> backend_;
  const std::unique_ptr<kernels::Stream> stream_;
  parallel::Groups groups_;
  std::unique_ptr<Dispatcher> dispatcher_;
  Tokens own_, received_;
  std::vector<std::pair<void*, size_t>> held_;
};

class DispatcherConformance : public testing::TestWithParam<Way> {
 protected:
  static constexpr int64_t kMaxTokens = 30;

  bool sends() const { return GetParam().a2a != parallel::MoeAllToAll::kNone; }

  bool uses_slab(bool extend) const {
    if (!sends()) return false;
    return GetParam().mode == DeepEpMode::kLowLatency || (GetParam().mode == DeepEpMode::kAuto && !extend);
  }
  int64_t most_tokens(bool extend) const { return uses_slab(extend) ? kCapacity : kMaxTokens; }

  // `body` on every rank's thread, of ranks that stay.
  void on_each(const std::function<void(size_t)>& body) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < world_.size(); ++i) threads.emplace_back(body, i);
    for (std::thread& thread : threads) thread.join();
  }
  void make(const Sizes& sizes) {
    world_ = parallel::make_inproc_group(static_cast<int>(GetParam().ranks));
    ranks_.resize(world_.size());
    on_each([&](size_t i) {
      ranks_[i] = std::make_unique<Rank>(GetParam(), *world_[i], static_cast<int64_t>(i), sizes, kMaxTokens);
    });
  }

  std::vector<std::unique_ptr<parallel::Communicator>> world_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

// The rows that a rank must get, by origin: those of tokens that go to one of its experts.
std::set<std::pair<size_t, int64_t>> expected_rows(const std::vector<Batch>& batches, const parallel::Slice& experts,
                                                   int64_t top_k) {
  std::set<std::pair<size_t, int64_t>> rows;
  for (size_t rank = 0; rank < batches.size(); ++rank) {
    for (size_t i = 0; i < batches[rank].ids.size(); ++i) {
      const int32_t id = batches[rank].ids[i];
      if (id >= experts.first && id < experts.end()) rows.emplace(rank, static_cast<int64_t>(i) / top_k);
    }
  }
  return rows;
}

void expect_values(const float* row, size_t rank, int64_t token, bool fp8) {
  const auto origin = static_cast<int64_t>(rank);
  const std::vector<float> errors = fp8 ? fp8_errors(origin, token) : std::vector<float>(kHidden);
  int64_t inexact = 0;
  for (int64_t j = 0; j < kHidden; ++j) {
    const float sent = value_of(origin, token, j);
    ASSERT_LE(std::abs(row[j] - sent), errors[static_cast<size_t>(j)])
        << "value " << j << " of token " << token << " of rank " << rank;
    inexact += row[j] != sent;
  }
  EXPECT_EQ(inexact > 0, fp8) << "what is sent in e4m3 loses something";
}

void expect_rows(const Batch& got, const std::vector<Batch>& batches, const parallel::Slice& experts, int64_t top_k,
                 bool fp8) {
  const auto wanted = expected_rows(batches, experts, top_k);
  EXPECT_EQ(got.n, std::ssize(wanted)) << "each row once, and no other";
  std::set<std::pair<size_t, int64_t>> found;
  for (int64_t row = 0; row < got.n; ++row) {
    const auto [rank, token] = origin_of(&got.x[static_cast<size_t>(row * kHidden)]);
    ASSERT_TRUE(wanted.contains({rank, token})) << "token " << token << " of rank " << rank << " has no expert here";
    found.emplace(rank, token);
    expect_values(&got.x[static_cast<size_t>(row * kHidden)], rank, token, fp8);
    for (int64_t k = 0; k < top_k; ++k) {
      const auto here = static_cast<size_t>(row * top_k + k), there = static_cast<size_t>(token * top_k + k);
      ASSERT_EQ(got.ids[here], batches[rank].ids[there]);
      ASSERT_EQ(got.shares[here], batches[rank].shares[there]);
    }
  }
  EXPECT_EQ(found, wanted);
}

// Each pair of a token and an expert of this rank is a row of that expert, and the rows of an expert follow each other.
void expect_slab(const Batch& got, const std::vector<Batch>& batches, const parallel::Slice& experts, int64_t top_k,
                 bool fp8) {
  std::set<std::tuple<size_t, int64_t, int32_t>> wanted, found;
  for (size_t rank = 0; rank < batches.size(); ++rank) {
    for (size_t i = 0; i < batches[rank].ids.size(); ++i) {
      const int32_t id = batches[rank].ids[i];
      if (id >= experts.first && id < experts.end()) wanted.emplace(rank, static_cast<int64_t>(i) / top_k, id);
    }
  }
  std::vector<std::set<int32_t>> rows(static_cast<size_t>(experts.count));
  for (int64_t row = 0; row < got.n; ++row) {
    const auto [rank, token] = origin_of(&got.x[static_cast<size_t>(row * kHidden)]);
    const int32_t id = got.ids[static_cast<size_t>(row)];
    found.emplace(rank, token, id);
    expect_values(&got.x[static_cast<size_t>(row * kHidden)], rank, token, fp8);
    rows[static_cast<size_t>(id - experts.first)].insert(got.slab_rows[static_cast<size_t>(row)]);
  }
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(got.n, std::ssize(wanted));
  ASSERT_EQ(got.masked_m.size(), rows.size());
  for (size_t e = 0; e < rows.size(); ++e) {
    EXPECT_EQ(got.masked_m[e], std::ssize(rows[e])) << "expert " << e;
    if (rows[e].empty()) continue;
    EXPECT_EQ(*rows[e].begin(), got.slab_starts[e]);
    EXPECT_EQ(*rows[e].rbegin() - *rows[e].begin() + 1, std::ssize(rows[e])) << "expert " << e;
  }
}

// Tokens come in pieces, of which each has room for its pairs with this rank's experts and no piece could take the next
// token.
void expect_pieces(const Batch& got, std::span<const int64_t> pieces, const parallel::Slice& experts, int64_t top_k,
                   int64_t room) {
  std::vector<int64_t> pairs(static_cast<size_t>(got.n));  // of each token
  for (size_t i = 0; i < got.ids.size(); ++i) {
    pairs[i / static_cast<size_t>(top_k)] += got.ids[i] >= experts.first && got.ids[i] < experts.end();
  }
  const auto sum = [&](int64_t first, int64_t count) {
    return std::accumulate(pairs.begin() + first, pairs.begin() + first + count, int64_t{0});
  };
  EXPECT_EQ(pieces.empty(), sum(0, got.n) <= room);
  int64_t first = 0;
  for (const int64_t count : pieces) {
    EXPECT_LE(sum(first, count), room);
    first += count;
    if (first == got.n) break;
    EXPECT_GT(sum(first - count, count + 1), room);
  }
  EXPECT_EQ(first, pieces.empty() ? 0 : got.n);
}

TEST_P(DispatcherConformance, TokensWithoutRoomForAllPairsComeInPieces) {
  if (GetParam().mode == DeepEpMode::kLowLatency || !sends()) GTEST_SKIP() << "a slab has room for all";
  Rng rng(5);
  const int64_t top_k = 2;
  const Sizes sizes{.hidden = kHidden, .experts = 2 * GetParam().ranks, .top_k = top_k, .room = top_k};
  make(sizes);
  for (int round = 0; round < 8; ++round) {
    const auto routing = static_cast<Routing>(round % 4);
    std::vector<Batch> batches;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      batches.push_back(draw(rng, routing, static_cast<int64_t>(i), sizes, kMaxTokens));
    }
    on_each([&](size_t i) {
      Rank& rank = *ranks_[i];
      const auto got = rank.dispatch(batches[i], /*extend=*/true);
      ASSERT_TRUE(got.ok()) << got.error().message;
      expect_pieces(*got, rank.received().pieces, rank.own_experts(), top_k, kMaxTokens * top_k);
      ASSERT_TRUE(rank.combine(*got).ok());
    });
  }
}

TEST_P(DispatcherConformance, GivesEachRankItsRowsAndTheirSumsBack) {
  Rng rng(static_cast<uint64_t>(17 + GetParam().ranks));
  for (const int64_t top_k : {1, 3}) {
    const Sizes sizes{
        .hidden = kHidden, .experts = 2 * GetParam().ranks + (GetParam().ranks == 1 ? 2 : 0), .top_k = top_k};
    if (top_k > sizes.experts) continue;
    make(sizes);
    for (int round = 0; round < 12; ++round) {
      const auto routing = static_cast<Routing>(round % 4);
      const bool extend = round % 3 == 0;
      SCOPED_TRACE(testing::Message() << "top " << top_k << " round " << round);
      std::vector<Batch> batches;
      for (size_t i = 0; i < ranks_.size(); ++i) {
        // Without dispatch all ranks have the same tokens.
        batches.push_back(sends() || i == 0 ? draw(rng, routing, static_cast<int64_t>(i), sizes, most_tokens(extend))
                                            : batches[0]);
      }
      on_each([&](size_t i) {
        Rank& rank = *ranks_[i];
        const auto got = rank.dispatch(batches[i], extend);
        ASSERT_TRUE(got.ok()) << got.error().message;
        if (uses_slab(extend)) {
          expect_slab(*got, batches, rank.own_experts(), top_k, GetParam().fp8);
        } else if (sends()) {
          EXPECT_TRUE(got->slab_rows.empty());
          expect_rows(*got, batches, rank.own_experts(), top_k, GetParam().fp8);
        } else {
          EXPECT_EQ(got->x, batches[i].x) << "nothing is sent";
        }
        auto back = rank.combine(*got);
        ASSERT_TRUE(back.ok()) << back.error().message;
        if (!sends()) {
          const auto count = std::ssize(*back);
          ASSERT_TRUE(
              rank.groups().all->all_reduce({}, parallel::Element::kF32, back->data(), back->data(), count).ok());
        }
        ASSERT_EQ(back->size(), batches[i].want.size());
        for (size_t j = 0; j < back->size(); ++j) {
          // As many products are added up as there are experts of a token, in another order.
          const float want = batches[i].want[j];
          const float sent = GetParam().fp8 ? batches[i].error[j] : 0;
          ASSERT_NEAR((*back)[j], want, sent + 8 * 0x1p-24 * std::abs(want) + 1e-6) << "value " << j;
        }
      });
    }
  }
}

// Of the ways that use a slab.
class SlabConformance : public DispatcherConformance {};

TEST_P(SlabConformance, StaysWhereItIsAndTakesSoManyTokens) {
  const Sizes sizes{.hidden = kHidden, .experts = 4 * GetParam().ranks, .top_k = 2};
  make(sizes);
  on_each([&](size_t i) {
    Rng rng(5 + i);
    Tokens first;
    const int steps = GetParam().device == "cpu" ? 1000 : 50;  // the sim device guards its memory around each kernel
    for (int step = 0; step < steps; ++step) {
      const Batch batch = draw(rng, Routing::kRandom, static_cast<int64_t>(i), sizes, 3);
      const auto got = ranks_[i]->dispatch(batch, /*extend=*/false);
      ASSERT_TRUE(got.ok()) << got.error().message;
      ASSERT_TRUE(ranks_[i]->combine(*got).ok());
      const Tokens& now = ranks_[i]->received();
      if (step == 0) first = now;
      ASSERT_EQ(now.x, first.x);
      ASSERT_EQ(now.out, first.out);
      ASSERT_EQ(now.ids, first.ids);
      ASSERT_EQ(now.slab_starts, first.slab_starts);
      ASSERT_EQ(now.slab_rows, first.slab_rows);
    }
  });
  // One token too many on the last rank: all hear of it.
  on_each([&](size_t i) {
    Batch batch;
    batch.n = i + 1 == ranks_.size() ? kCapacity + 1 : 1;
    batch.x.assign(static_cast<size_t>(batch.n * kHidden), 1);
    batch.ids.assign(static_cast<size_t>(batch.n * sizes.top_k), 0);
    batch.shares.assign(batch.ids.size(), 1);
    const auto got = ranks_[i]->dispatch(batch, /*extend=*/false);
    ASSERT_FALSE(got.ok());
    EXPECT_EQ(got.error().message,
              fmt::format("rank {} has 21 tokens in a step, and --deepep-mode low_latency takes at most 20 of a rank "
                          "(SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK)",
                          ranks_.size() - 1));
  });
}

std::vector<Way> ways() {
  std::vector<Way> all;
  for (const auto& row : kernels::backends()) {
    for (const int64_t ranks : {1, 2, 4}) {
      const auto add = [&](std::string_view name, parallel::MoeAllToAll a2a, DeepEpMode mode, bool fp8 = false) {
        all.push_back({fmt::format("{}_{}_{}", name, row.name, ranks), std::string(row.name), a2a, mode, fp8, ranks});
      };
      add("none", parallel::MoeAllToAll::kNone, DeepEpMode::kNormal);
      add("deepep_normal", parallel::MoeAllToAll::kDeepEp, DeepEpMode::kNormal);
      add("deepep_low_latency", parallel::MoeAllToAll::kDeepEp, DeepEpMode::kLowLatency);
      add("deepep_auto", parallel::MoeAllToAll::kDeepEp, DeepEpMode::kAuto);
      add("deepep_normal_fp8", parallel::MoeAllToAll::kDeepEp, DeepEpMode::kNormal, true);
      add("deepep_auto_fp8", parallel::MoeAllToAll::kDeepEp, DeepEpMode::kAuto, true);
    }
  }
  return all;
}

std::vector<Way> slab_ways() {
  std::vector<Way> all = ways();
  std::erase_if(all, [](const Way& way) { return way.mode == DeepEpMode::kNormal; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Ways, SlabConformance, testing::ValuesIn(slab_ways()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Ways, DispatcherConformance, testing::ValuesIn(ways()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice::moe
