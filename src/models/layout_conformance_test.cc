// What every family must do however it is divided among ranks: give the logits of one rank that has the whole model, in
// steps whose attention groups do different things. Ranks are threads here.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <thread>

#include "base/rng.h"
#include "models/batch_split.h"
#include "models/model_fixture.h"
#include "models/rank_shape.h"
#include "models/sharding.h"
#include "parallel/inproc.h"

namespace sluice::models {
namespace {

using parallel::Layout;

struct Case {
  std::string fixture;
  std::string device;
  std::string dtype;
  Layout layout;
  moe::ExpertPlacement placement = {};
  std::string_view placed = {};  // the placement's name
  moe::DeepEpMode mode = moe::DeepEpMode::kNormal;
  int64_t capacity = 128;
  std::optional<moe::RebalanceOptions> rebalance = {};
  bool in_halves = false;  // one is computed while rows of the other are on their way
  bool fixed = false;      // groups are filled up to one length
  int64_t max_tokens = 128;
  // In halves each member of an attention group has tokens of both, which records do not know.
  bool records_routing() const { return !in_halves || layout.attention_tp_size() == 1; }
};

std::string name_of(const Case& c) {
  const Layout& l = c.layout;
  std::string name = fmt::format("{}_{}_{}_tp{}dp{}ep{}{}{}{}", c.fixture, c.device, c.dtype, l.tp_size, l.dp_size,
                                 l.ep_size, l.a2a == parallel::MoeAllToAll::kDeepEp ? "_deepep" : "",
                                 l.dense_data_parallel ? "_dense_dp" : "", l.dp_lm_head ? "_dp_head" : "");
  name += c.placed;
  if (c.mode != moe::DeepEpMode::kNormal) name += c.mode == moe::DeepEpMode::kAuto ? "_auto" : "_low_latency";
  if (c.capacity == 1) name += "_of_one";
  if (c.in_halves) name += "_halves";
  if (c.fixed) name += "_fixed";
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
void PrintTo(const Case& c, std::ostream* out) { *out << name_of(c); }

// The ranks of an instance, each with its part of a fixture.
class Instance {
 public:
  explicit Instance(const Case& c) : layout_(c.layout), in_halves_(c.in_halves), fixed_(c.fixed) {
    world_ = parallel::make_inproc_group(static_cast<int>(layout_.tp_size));
    ranks_.resize(world_.size());
    on_each([&](size_t i) {
      Rank& rank = ranks_[i];
      Layout own = layout_;
      own.tp_rank = static_cast<int64_t>(i);
      auto groups = parallel::make_groups(*world_[i], own);
      ASSERT_TRUE(groups.ok()) << groups.error().message;
      rank.groups = std::move(*groups);
      if (in_halves_) rank.overlap = std::move(parallel::Overlap::make(*world_[i], own)).value();
      auto runner = load_runner({.model_path = folder_of(c.fixture),
                                 .device = c.device,
                                 .dtype = c.dtype,
                                 .max_step_tokens = c.max_tokens,
                                 .max_step_seqs = 8,
                                 .record_routing = c.records_routing(),
                                 .expert_placement = c.placement,
                                 .rebalance = c.rebalance,
                                 .deepep = {.mode = c.mode, .capacity = c.capacity},
                                 .groups = &rank.groups,
                                 .overlap = rank.overlap.get(),
                                 .kernel_times = c.device == "sim" ? nullptr : &rank.kernels});
      ASSERT_TRUE(runner.ok()) << runner.error().message;
      rank.runner = std::move(*runner);
      rank.steps = std::make_unique<Steps>(*rank.runner);
    });
  }

  // One step; what each attention group got of it. With `forced`, of each group, its tokens go to those experts.
  std::vector<Output> run(const std::vector<std::vector<Piece>>& groups, const std::vector<Routing>& forced = {}) {
    std::vector<StepArrays> arrays;
    std::vector<int64_t> tokens, first_half;
    bool extend = false;
    for (const auto& pieces : groups) {
      for (const Piece& piece : pieces) extend |= piece.ids.size() > 1;
      arrays.emplace_back(pieces);
      tokens.push_back(std::ssize(arrays.back().view().token_ids));
      first_half.push_back(split_batch(arrays.back().view(), /*threshold=*/0.48));
    }
    std::vector<Output> outputs(groups.size());
    on_each([&](size_t i) {
      for (uint64_t turns = late_.empty() ? 0 : late_[i]; turns > 0; --turns) std::this_thread::yield();
      const Layout& own = ranks_[i].groups.layout;
      const auto group = static_cast<size_t>(own.attention_dp().rank);
      StepBatch batch = arrays[group].view();
      batch.extend = extend;
      if (in_halves_) batch.first_half = first_half;
      if (own.dp_attention()) batch.group_tokens = batch.group_logits = tokens;
      if (fixed_) batch.padded_rows = (std::ranges::max(tokens) + 7) / 8 * 8;
      if (!forced.empty()) ranks_[i].runner->force_routing(own_part(forced[group], tokens[group], own));
      Output output = ranks_[i].steps->run(batch);
      if (own.leads()) {
        outputs[group].logits = std::move(output.logits);
      } else {
        EXPECT_TRUE(output.logits.empty());
      }
      ranks_[i].routing = std::move(output.routing);
    });
    for (size_t group = 0; group < outputs.size(); ++group) outputs[group].routing = routing_of(group, tokens[group]);
    return outputs;
  }

  // Each rank comes to the next step later than it could, by a number of turns of its own.
  void delay(Rng& rng) {
    late_.clear();
    for (size_t i = 0; i < world_.size(); ++i) late_.push_back(rng.below(3) == 0 ? rng.below(2000) : 0);
  }

  const Runner& rank(size_t i) const { return *ranks_[i].runner; }
  // Products with weights of experts that a rank has computed since the start; not on device sim.
  int64_t expert_products(size_t i) const {
    int64_t calls = 0;
    for (const auto& [name, time] : ranks_[i].kernels) {
      calls += name.find("grouped_linear") != std::string::npos ? time.calls : 0;
    }
    return calls;
  }
  // Bytes that ranks got in calls of second halves.
  uint64_t second_half_bytes() const {
    uint64_t bytes = 0;
    for (const Rank& rank : ranks_) bytes += rank.overlap->half(1).received_bytes();
    return bytes;
  }

 private:
  struct Rank {
    parallel::Groups groups;
    std::unique_ptr<parallel::Overlap> overlap;
    kernels::KernelTimes kernels;
    std::unique_ptr<Runner> runner;
    std::unique_ptr<Steps> steps;
    Routing routing;  // of the last step
  };

  // The leader knows all of its group's, or each rank some tokens'.
  Routing routing_of(size_t group, int64_t tokens) const {
    const auto members = static_cast<size_t>(layout_.attention_tp_size());
    const Routing& first = ranks_[group * members].routing;
    if (layout_.a2a == parallel::MoeAllToAll::kNone) return first;
    if (first.experts.empty()) return {};  // not recorded
    Routing all{.layers = first.layers, .top_k = first.top_k};
    for (int64_t layer = 0; layer < first.layers; ++layer) {
      for (size_t member = 0; member < members; ++member) {
        const Routing& part = ranks_[group * members + member].routing;
        const int64_t n = parallel::part_of(tokens, {static_cast<int64_t>(member), layout_.attention_tp_size()}).count;
        const auto experts = part.experts.begin() + layer * n * first.top_k;
        all.experts.insert(all.experts.end(), experts, experts + n * first.top_k);
        all.margins.insert(all.margins.end(), part.margins.begin() + layer * n, part.margins.begin() + (layer + 1) * n);
      }
    }
    return all;
  }

  // Of a group's routing that of the tokens whose experts this rank looks for.
  static Routing own_part(const Routing& group, int64_t tokens, const Layout& own) {
    if (own.a2a == parallel::MoeAllToAll::kNone) return group;
    const parallel::Slice slice = parallel::part_of(tokens, own.attention_tp());
    Routing part{.layers = group.layers, .top_k = group.top_k};
    for (int64_t layer = 0; layer < group.layers; ++layer) {
      const auto of_layer = group.experts.begin() + layer * tokens * group.top_k;
      part.experts.insert(part.experts.end(), of_layer + slice.first * group.top_k,
                          of_layer + slice.end() * group.top_k);
    }
    return part;
  }

  void on_each(const std::function<void(size_t)>& body) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < world_.size(); ++i) threads.emplace_back(body, i);
    for (std::thread& thread : threads) thread.join();
  }

  const Layout layout_;
  const bool in_halves_;
  const bool fixed_;
  std::vector<std::unique_ptr<parallel::Communicator>> world_;
  std::vector<Rank> ranks_;
  std::vector<uint64_t> late_;  // of each rank
};

// What one attention group does in a step: it prefills, decodes, does both, or idles.
std::vector<Piece> draw_step(Rng& rng, std::vector<int32_t>& lengths) {
  std::vector<Piece> pieces;
  const uint64_t mode = rng.below(4);
  for (size_t row = 0; row < lengths.size() && mode > 0; ++row) {
    const bool prefills = mode == 1 ? rng.below(2) == 0 : mode == 2 && lengths[row] == 0;
    const auto n = static_cast<int32_t>(prefills ? 1 + rng.below(20) : lengths[row] > 0 && mode != 1 ? 1 : 0);
    if (n == 0 || lengths[row] + n > kWidth) continue;
    Piece piece{.row = static_cast<int32_t>(row), .cached = lengths[row]};
    for (int32_t i = 0; i < n; ++i) piece.ids.push_back(static_cast<int32_t>(rng.below(512)));
    lengths[row] += n;
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

// What a rank of the case takes for its steps, by its configuration alone, is what it took.
void expect_foretold_buffers(const Case& c, const Instance& instance) {
  const ModelConfig config = load_config(folder_of(c.fixture), "").value();
  const auto map = check_sharding(config, c.layout, c.placement).value();
  const auto dtype = c.dtype == "float32" ? kernels::DType::kF32 : kernels::DType::kBf16;
  Layout own = c.layout;
  for (; own.tp_rank < own.tp_size; ++own.tp_rank) {
    const auto needs = needs_of_rank(config, own, dtype, *dummy_weights(config),
                                     {.max_tokens = c.max_tokens,
                                      .max_seqs = 8,
                                      .deepep = {.mode = c.mode, .capacity = c.capacity},
                                      .in_halves = c.in_halves,
                                      .records_routing = c.records_routing()},
                                     /*kv_dtype=*/{}, /*rounded=*/false, map ? &*map : nullptr);
    ASSERT_TRUE(needs.ok()) << needs.error().message;
    const StepBuffers& foretold = needs->buffers;
    EXPECT_EQ(static_cast<size_t>(foretold.bytes), instance.rank(static_cast<size_t>(own.tp_rank)).info().buffer_bytes)
        << "rank " << own.tp_rank;
    EXPECT_EQ(foretold.dispatch_bytes > 0, c.layout.a2a == parallel::MoeAllToAll::kDeepEp);
  }
}

class LayoutConformance : public testing::TestWithParam<Case> {};

TEST_P(LayoutConformance, GivesTheLogitsOfOneRank) {
  const Case& c = GetParam();
  Instance instance(c);
  ASSERT_FALSE(HasFatalFailure());
  if (c.device == "cpu") expect_foretold_buffers(c, instance);  // on others logits are copied as well
  const Closeness closeness(c.fixture, c.dtype);
  const auto groups = static_cast<size_t>(c.layout.dp_size);
  std::vector<std::unique_ptr<Runner>> alone;
  std::vector<Steps> steps;
  for (size_t group = 0; group < groups; ++group) {
    auto runner = load_runner({.model_path = folder_of(c.fixture),
                               .dtype = c.dtype,
                               .max_step_tokens = 128,
                               .max_step_seqs = 8,
                               .record_routing = c.records_routing()});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    alone.push_back(std::move(*runner));
    steps.emplace_back(*alone.back());
  }

  const uint64_t before = c.in_halves ? instance.second_half_bytes() : 0;
  Rng rng(static_cast<uint64_t>(c.layout.tp_size * 100 + c.layout.dp_size * 10 + c.layout.ep_size));
  std::vector<std::vector<int32_t>> lengths(groups, std::vector<int32_t>(3));
  for (int step = 0; step < 8; ++step) {
    SCOPED_TRACE(step);
    std::vector<std::vector<Piece>> work;
    size_t tokens = 0;
    for (auto& of_group : lengths) {
      work.push_back(draw_step(rng, of_group));
      for (const Piece& piece : work.back()) tokens += piece.ids.size();
    }
    if (tokens == 0) continue;
    const std::vector<Output> got = instance.run(work);
    for (size_t group = 0; group < groups; ++group) {
      SCOPED_TRACE(group);
      if (work[group].empty()) {
        EXPECT_TRUE(got[group].logits.empty());
        continue;
      }
      // Another order of sums may tip a router that is near a tie.
      Output want = steps[group].run(work[group], got[group].routing);
      if (!c.records_routing()) want.routing = {};
      ASSERT_EQ(got[group].logits.size(), want.logits.size());
      closeness.expect_same(got[group], want, /*runs=*/2);
    }
  }
  if (c.in_halves) {
    EXPECT_GT(instance.second_half_bytes(), before);
  }
  // A single expert on each rank is as well there as anywhere.
  if (c.rebalance && std::ssize(instance.rank(0).expert_loads()[0]) > c.layout.ep_size) {
    EXPECT_GT(instance.rank(0).rebalance_counts().layers_moved, 0u);
  }
}

class MoreThanThereIsRoomFor : public testing::TestWithParam<Case> {};

// All tokens of full steps go to the experts of one rank, which has no room for all of them at once.
TEST_P(MoreThanThereIsRoomFor, IsComputedInPieces) {
  constexpr int32_t kTokens = 24;  // of each group in a step
  Case c = GetParam();
  c.max_tokens = kTokens;
  Instance instance(c);
  ASSERT_FALSE(HasFatalFailure());
  const Closeness closeness(c.fixture, c.dtype);
  const auto groups = static_cast<size_t>(c.layout.dp_size), ranks = static_cast<size_t>(c.layout.tp_size);
  std::vector<std::unique_ptr<Runner>> alone;
  std::vector<Steps> steps;
  for (size_t group = 0; group < groups; ++group) {
    auto runner = load_runner({.model_path = folder_of(c.fixture),
                               .dtype = c.dtype,
                               .max_step_tokens = kTokens,
                               .max_step_seqs = 8,
                               .record_routing = true});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    alone.push_back(std::move(*runner));
    steps.emplace_back(*alone.back());
  }
  // The layers with experts and how many of these a token has, as the model says.
  const int32_t probe = 1;
  const Routing shape = steps[0].run({Piece{.row = 7, .ids = {probe}}}).routing;
  const auto experts = std::ssize(alone[0]->expert_loads()[0]);

  Rng rng(static_cast<uint64_t>(11 + c.layout.dp_size));
  for (int32_t step = 0; step < 3; ++step) {
    SCOPED_TRACE(step);
    const auto target = rng.below(ranks);
    const parallel::Slice own = parallel::part_of(experts, {static_cast<int64_t>(target), c.layout.ep_size});
    ASSERT_GE(own.count, shape.top_k);
    std::vector<std::vector<Piece>> work(groups);
    std::vector<Routing> forced(groups, {.layers = shape.layers, .top_k = shape.top_k});
    for (size_t group = 0; group < groups; ++group) {
      const auto first = static_cast<int32_t>(5 + rng.below(14));
      for (const auto& [row, n] : {std::pair{2 * step, first}, {2 * step + 1, kTokens - first}}) {
        Piece& piece = work[group].emplace_back(Piece{.row = row});
        for (int32_t i = 0; i < n; ++i) piece.ids.push_back(static_cast<int32_t>(rng.below(512)));
      }
      std::vector<int32_t> order(static_cast<size_t>(own.count));
      std::iota(order.begin(), order.end(), static_cast<int32_t>(own.first));
      for (int64_t i = 0; i < shape.layers * kTokens; ++i) {
        std::shuffle(order.begin(), order.end(), rng);
        forced[group].experts.insert(forced[group].experts.end(), order.begin(), order.begin() + shape.top_k);
      }
    }
    std::vector<int64_t> before;
    for (size_t rank = 0; rank < ranks; ++rank) before.push_back(instance.expert_products(rank));
    const std::vector<Output> got = instance.run(work, forced);
    for (size_t group = 0; group < groups; ++group) {
      SCOPED_TRACE(group);
      const Output want = steps[group].run(work[group], forced[group]);
      ASSERT_EQ(got[group].logits.size(), want.logits.size());
      closeness.expect_same(got[group], want, /*runs=*/2);
    }
    // Two products in each layer, and as many again for each piece more.
    for (size_t rank = 0; rank < ranks; ++rank) {
      const int64_t products = instance.expert_products(rank) - before[rank], whole = 2 * shape.layers;
      EXPECT_EQ(products % whole, 0) << "rank " << rank;
      if (rank == target) {
        EXPECT_GE(products, 2 * whole) << "all at once";
      } else {
        EXPECT_EQ(products, whole) << "rank " << rank;
      }
    }
  }
}

std::vector<Case> crowded() {
  std::vector<Case> all;
  for (const char* fixture : {"tiny-qwen3-moe", "tiny-deepseek-v3"}) {
    for (const int64_t dp : {2, 4}) {
      for (const auto mode : {moe::DeepEpMode::kNormal, moe::DeepEpMode::kAuto}) {
        all.push_back({.fixture = fixture,
                       .device = "cpu",
                       .dtype = "float32",
                       .layout = {.tp_size = 4, .dp_size = dp, .ep_size = 4, .a2a = parallel::MoeAllToAll::kDeepEp},
                       .mode = mode});
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, MoreThanThereIsRoomFor, testing::ValuesIn(crowded()),
                         [](const auto& info) { return name_of(info.param); });

std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (const auto& [tp, dp] : {std::pair<int64_t, int64_t>{2, 1}, {4, 1}, {2, 2}, {4, 2}, {4, 4}}) {
    all.push_back({.tp_size = tp, .dp_size = dp});
    if (dp > 1) all.push_back({.tp_size = tp, .dp_size = dp, .dense_data_parallel = true, .dp_lm_head = true});
    all.push_back({.tp_size = tp, .dp_size = dp, .ep_size = tp});
    all.push_back({.tp_size = tp,
                   .dp_size = dp,
                   .ep_size = tp,
                   .a2a = parallel::MoeAllToAll::kDeepEp,
                   .dense_data_parallel = dp == tp});
  }
  all.push_back({.tp_size = 4, .dp_size = 2, .ep_size = 2});
  return all;
}

// Copies of experts, anywhere: the last expert is everywhere, the others where they happen to be, and every layer is
// another.
moe::ExpertPlacement scattered(const ModelConfig& config, int64_t ranks, moe::CopyChoice choice) {
  const int64_t logical = config.moe->experts, physical = logical + 2 * ranks;
  Rng rng(7);
  nlohmann::json map = nlohmann::json::array();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::vector<int32_t> copies;
    for (int64_t i = 0; i < logical; ++i) copies.push_back(static_cast<int32_t>(i));
    for (int64_t i = 0; i < ranks; ++i) copies.push_back(static_cast<int32_t>(logical - 1));
    for (int64_t i = 0; i < ranks; ++i)
      copies.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(logical))));
    std::shuffle(copies.begin(), copies.end(), rng);
    map.push_back(copies);
  }
  return {.redundant = physical - logical,
          .location = nlohmann::json{{"physical_to_logical_map", map}}.dump(),
          .choice = choice};
}

void add_ways_to_experts(std::vector<Case>& cases, const ModelConfig& config, Case plain) {
  const int64_t ranks = plain.layout.ep_size;
  if (ranks == 1) return;
  cases.push_back(plain);
  cases.back().placement = scattered(config, ranks, moe::CopyChoice::kStatic);
  cases.back().placed = "_copies_static";
  cases.push_back(plain);
  cases.back().placement = scattered(config, ranks, moe::CopyChoice::kDynamic);
  cases.back().placed = "_copies_dynamic";
  cases.push_back(plain);
  cases.back().placement = {.redundant = ranks};
  cases.back().placed = "_copies_trivial";
  // Experts move between steps, a layer at a time.
  for (const auto& [redundant, name] : {std::pair{int64_t{0}, "_eplb"}, {ranks, "_eplb_copies"}}) {
    cases.push_back(plain);
    cases.back().placement = {.redundant = redundant, .choice = moe::CopyChoice::kDynamic, .moves = true};
    cases.back().rebalance = {.steps = 2, .layers_at_once = 1};
    cases.back().placed = name;
  }
  if (plain.layout.a2a == parallel::MoeAllToAll::kNone) return;
  for (const auto mode : {moe::DeepEpMode::kLowLatency, moe::DeepEpMode::kAuto}) {
    cases.push_back(plain);
    cases.back().mode = mode;
    cases.push_back(cases.back());
    cases.back().in_halves = true;
  }
}

// Every checkpoint among the fixtures, in the layouts that it can be divided into.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_FIXTURES_DIR)) {
    if (!std::filesystem::exists(entry.path() / "reference.safetensors")) continue;
    const std::string fixture = entry.path().filename();
    std::ifstream file(entry.path() / "config.json");
    const auto config = config_from_json(nlohmann::json::parse(file), nullptr);
    if (!config.ok()) continue;
    for (const Layout& layout : layouts()) {
      if (!check_sharding(*config, layout).ok()) continue;
      all.push_back({fixture, "cpu", "float32", layout});
      if (layout.a2a == parallel::MoeAllToAll::kDeepEp) {
        all.push_back(all.back());
        all.back().in_halves = true;
        // Decodes through the slab, or those alone in which no rank has more than one token.
        for (const int64_t capacity : {128, 1}) {
          if (capacity == 128 && layout.tp_size == 4 && layout.dp_size == 2) continue;  // below
          all.push_back({fixture, "cpu", "float32", layout});
          all.back().mode = moe::DeepEpMode::kAuto;
          all.back().capacity = capacity;
          // Of a step one half may go by exact counts and the other through the slab.
          all.push_back(all.back());
          all.back().in_halves = true;
        }
      }
      if (layout.dp_size == 1 && layout.ep_size == 1 && layout.a2a == parallel::MoeAllToAll::kNone) {
        all.push_back({fixture, "sim", "float32", layout});
      }
      if (layout.tp_size == 4 && layout.dp_attention()) {
        for (const char* device : {"cpu", "sim"}) {
          all.push_back({fixture, device, "float32", layout});
          all.back().fixed = true;
        }
      }
      if (layout.tp_size == 4 && layout.dp_size == 2) {
        add_ways_to_experts(all, *config, {fixture, "cpu", "float32", layout});
        all.push_back({fixture, "sim", "float32", layout});
        add_ways_to_experts(all, *config, all.back());
      }
      if (layout.tp_size == 4 && layout.ep_size == 4 && kernels::best_dtype() == kernels::DType::kBf16) {
        all.push_back({fixture, "cpu", "bfloat16", layout});
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LayoutConformance, testing::ValuesIn(cases()),
                         [](const auto& info) { return name_of(info.param); });

// The arithmetic and the modes of --deterministic.
class DeterministicConformance : public testing::TestWithParam<Case> {};

TEST_P(DeterministicConformance, TheSameStepsGiveTheSameBitsWhicheverRankIsLate) {
  const Case& c = GetParam();
  Instance instance(c), again(c);
  ASSERT_FALSE(HasFatalFailure());
  Rng rng(11);
  std::vector<std::vector<int32_t>> lengths(static_cast<size_t>(c.layout.dp_size), std::vector<int32_t>(3));
  for (int step = 0; step < 8; ++step) {
    SCOPED_TRACE(step);
    std::vector<std::vector<Piece>> work;
    for (auto& of_group : lengths) work.push_back(draw_step(rng, of_group));
    if (std::ranges::all_of(work, [](const auto& pieces) { return pieces.empty(); })) continue;
    const std::vector<Output> want = instance.run(work);
    again.delay(rng);
    const std::vector<Output> got = again.run(work);
    for (size_t group = 0; group < want.size(); ++group) {
      EXPECT_EQ(got[group].logits, want[group].logits);
      EXPECT_EQ(got[group].routing.experts, want[group].routing.experts);
    }
  }
}

std::vector<Case> deterministic() {
  std::vector<Case> some;
  for (const Case& c : cases()) {
    const bool plain = c.device == "cpu" && c.dtype == "float32" && c.placed.empty() && !c.in_halves && !c.fixed;
    if (plain && c.mode == moe::DeepEpMode::kNormal && c.layout.tp_size == 4) some.push_back(c);
  }
  return some;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, DeterministicConformance, testing::ValuesIn(deterministic()),
                         [](const auto& info) { return name_of(info.param); });

TEST(LayoutFixtures, EachCanBeDividedIntoFourInSomeWay) {
  std::map<std::string, int> found;
  for (const Case& c : cases()) found[c.fixture] += c.layout.tp_size == 4 && c.layout.attention_tp_size() == 4;
  for (const auto& [fixture, count] : found) EXPECT_GT(count, 0) << fixture;
  EXPECT_GT(found.size(), 8u);
}

}  // namespace
}  // namespace sluice::models
