// Experts that move from rank to rank while the model serves. Ranks are threads here. That their outputs are those of
// one rank, in every layout, is in layout_conformance_test.cc.
#include "models/rebalancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "models/family.h"
#include "models/model_fixture.h"
#include "models/sharding.h"
#include "parallel/group_fixture.h"
#include "parallel/inproc.h"
#include "tensor/block_scaled.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

using parallel::Layout;
using testing::HasSubstr;

// What happens to calls of experts on their way.
enum class Harm { kNone, kFlipsABit, kDies };

class HarmfulCommunicator final : public parallel::Communicator {
 public:
  explicit HarmfulCommunicator(Communicator& inner)
      : Communicator(inner.name(), inner.rank(), {inner.world_ranks().begin(), inner.world_ranks().end()}),
        inner_(inner) {}

  // Of the number-th call from now on in which experts travel, to this rank if they are to be harmed.
  void harm(Harm harm, int number = 1) { harm_ = harm, left_ = number; }

  // In one call in which experts travel.
  size_t most_sent() const { return most_sent_; }

  void progress(const parallel::Progress& progress) override { inner_.progress(progress); }
  parallel::Progress last_progress(int rank) const override { return inner_.last_progress(rank); }
  void abort(std::string_view reason) override { inner_.abort(reason); }
  std::optional<Error> failure() const override { return inner_.failure(); }
  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override { return inner_.common_memory(bytes); }
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    return inner_.subgroup(members, index, name);
  }
  Result<void> run(const parallel::Collective& call) override {
    const size_t got = bytes_out(call, rank(), size());
    const bool experts = call.kind == parallel::Kind::kAllToAll && call.element == parallel::Element::kU8;
    if (experts) most_sent_ = std::max(most_sent_, bytes_in(call, rank(), size()));
    const bool now = experts && (got > 0 || harm_ == Harm::kDies) && left_ > 0 && --left_ == 0;
    if (now && harm_ == Harm::kDies) inner_.abort("rank 1 has died");
    SLUICE_TRY_VOID(inner_.run(call));
    if (now && harm_ == Harm::kFlipsABit) static_cast<uint8_t*>(call.out)[got / 2] ^= 4;
    return {};
  }

 private:
  Communicator& inner_;
  Harm harm_ = Harm::kNone;
  int left_ = 0;
  size_t most_sent_ = 0;
};

// A placement of some experts and copies, each layer another one.
moe::PhysicalToLogical shuffled(const ModelConfig& config, int64_t redundant, uint64_t seed) {
  Rng rng(seed);
  moe::PhysicalToLogical location;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    auto& places = location.emplace_back();
    for (int64_t e = 0; e < config.moe->experts + redundant; ++e) {
      const auto any = rng.below(static_cast<uint64_t>(config.moe->experts));
      places.push_back(static_cast<int32_t>(e < config.moe->experts ? e : static_cast<int64_t>(any)));
    }
    std::shuffle(places.begin(), places.end(), rng);
  }
  return location;
}

// ---- weights: those that were moved are those that a rank with the new map reads

struct Case {
  std::string fixture, device;
  Layout layout;
  int64_t redundant;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.fixture << " " << c.device << " tp " << c.layout.tp_size << " ep " << c.layout.ep_size << " + "
       << c.redundant;
}

// The part of a model of one rank, in memory.
struct RankPart {
  RankPart(const Case& c, const ModelConfig& config, const tensor::TensorSource& source, const parallel::Groups& groups,
           const moe::PhysicalToLogical& location, bool moves)
      : map{.logical = config.moe->experts,
            .physical = config.moe->experts + c.redundant,
            .location = location,
            .moves = moves},
        backend(kernels::make_backend(c.device, 1).value()),
        stream(backend->make_stream()),
        weights(*backend, kernels::DType::kF32, &source, &groups, &map),
        decoder(find_family(config.architectures[0]).value()->make(config, weights)) {
    if (moves) mover = std::make_unique<ExpertMover>(weights, decoder->expert_layers());
    EXPECT_OK(weights.materialise(source, context(), {}, {}));
  }
  kernels::Context context() const { return {backend.get(), stream.get()}; }
  std::vector<char> bytes(size_t count) const {
    std::vector<char> all(count);
    backend->copy_to_host(context(), all.data(), weights.writable(0), count);
    backend->synchronize(context());
    return all;
  }

  moe::ExpertMap map;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<kernels::Stream> stream;
  WeightStore weights;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<ExpertMover> mover;
};

class ExpertMoverTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    config_ = load_config(folder_of(c.fixture), "").value();
    source_ = tensor::open_safetensors(folder_of(c.fixture)).value();
    if (config_.fp8) source_ = tensor::block_scaled(std::move(source_), 128, 128);
    world_ = parallel::make_inproc_group(static_cast<int>(c.layout.tp_size));
  }

  // On each rank: all layers from one placement to another; false if the group failed.
  void move_all(const std::function<void(RankPart&, const RankPart& wanted, HarmfulCommunicator&, bool moved)>& check,
                const std::function<void(HarmfulCommunicator&)>& before = {}) {
    const Case& c = GetParam();
    const auto from = shuffled(config_, c.redundant, 1), to = shuffled(config_, c.redundant, 2);
    parallel::on_each(world_, [&](parallel::Communicator& comm) {
      Layout layout = c.layout;
      layout.tp_rank = comm.rank();
      auto groups = parallel::make_groups(comm, layout);
      ASSERT_OK(groups);
      HarmfulCommunicator harmful(comm);
      groups->all = &harmful;
      RankPart part(c, config_, *source_, *groups, from, true), wanted(c, config_, *source_, *groups, to, false);
      ASSERT_OK(part.mover->check_alike());
      if (before) before(harmful);
      bool moved = true;
      for (const ExpertLayer& layer : part.decoder->expert_layers()) {
        const auto at = static_cast<size_t>(layer.number);
        const auto moves = moe::moves_between(from[at], to[at], layout.ep_size);
        const auto done = part.mover->move(part.context(), layer, moves, 7);
        moved = done.ok() && !done->damage;
        damage_[static_cast<size_t>(comm.rank())] = done.ok() ? done->damage.value_or("") : done.error().message;
        if (!moved) break;
        bytes_ = done->bytes;
      }
      check(part, wanted, harmful, moved);
    });
  }

  ModelConfig config_;
  std::unique_ptr<tensor::TensorSource> source_;
  parallel::Ranks world_;
  std::array<std::string, 4> damage_;
  std::atomic<uint64_t> bytes_{0};
};

TEST_P(ExpertMoverTest, WeightsAreThoseOfAStartWithTheNewMap) {
  move_all([&](RankPart& part, const RankPart& wanted, HarmfulCommunicator&, bool moved) {
    EXPECT_TRUE(moved);
    EXPECT_EQ(part.bytes(wanted.weights.bytes()), wanted.bytes(wanted.weights.bytes()));
  });
  EXPECT_GT(bytes_, 0u);
}

// The memory plan counts what the weights take.
TEST_P(ExpertMoverTest, WhatMovingTakesIsALayerAndOneExpertAmongTheWeights) {
  std::atomic<size_t> most_sent{0};
  move_all([&](RankPart& part, const RankPart& wanted, HarmfulCommunicator& comm, bool) {
    size_t expert = 0;
    for (const ExpertLayer& layer : part.decoder->expert_layers()) {
      expert = std::max(expert, layer.gate_up.stride + layer.down.stride);
    }
    const auto own = static_cast<size_t>(part.map.physical / GetParam().layout.ep_size);
    EXPECT_GE(part.weights.bytes(), wanted.weights.bytes() + (own + 1) * expert);
    EXPECT_LT(part.weights.bytes(), wanted.weights.bytes() + (own + 2) * expert);
    EXPECT_LE(comm.most_sent(), expert);
    if (comm.most_sent() == expert) most_sent = expert;
  });
  EXPECT_GT(most_sent, 0u);
}

TEST_P(ExpertMoverTest, R26ALayerThatDidNotArriveAsItWasSentStaysWhatItWas) {
  std::vector<char> before[4];
  move_all(
      [&](RankPart& part, const RankPart& wanted, HarmfulCommunicator&, bool moved) {
        const Case& c = GetParam();
        EXPECT_FALSE(moved) << "the same is known on all ranks";
        const RankPart as_it_was(c, config_, *source_, *part.weights.groups(), part.map.location, false);
        EXPECT_EQ(part.bytes(wanted.weights.bytes()), as_it_was.bytes(wanted.weights.bytes()));
      },
      [](HarmfulCommunicator& comm) {
        if (comm.rank() == 1) comm.harm(Harm::kFlipsABit);
      });
  for (int64_t rank = 0; rank < GetParam().layout.tp_size; ++rank) {
    EXPECT_THAT(damage_[static_cast<size_t>(rank)], HasSubstr("what rank 1 got from rank"));
    EXPECT_EQ(damage_[static_cast<size_t>(rank)], damage_[0]);
  }
}

TEST_P(ExpertMoverTest, R26ALayerStaysWhatItWasWhereARankDiesHalfway) {
  move_all(
      [&](RankPart& part, const RankPart& wanted, HarmfulCommunicator&, bool moved) {
        EXPECT_FALSE(moved);
        const RankPart as_it_was(GetParam(), config_, *source_, *part.weights.groups(), part.map.location, false);
        EXPECT_EQ(part.bytes(wanted.weights.bytes()), as_it_was.bytes(wanted.weights.bytes()));
      },
      [](HarmfulCommunicator& comm) {
        if (comm.rank() == 1) comm.harm(Harm::kDies, 2);
      });
  for (int64_t rank = 0; rank < GetParam().layout.tp_size; ++rank) {
    EXPECT_THAT(damage_[static_cast<size_t>(rank)], HasSubstr("rank 1 has died"));
  }
}

constexpr Layout kTwo{.tp_size = 2, .ep_size = 2};
constexpr Layout kFour{.tp_size = 4, .dp_size = 2, .ep_size = 4, .a2a = parallel::MoeAllToAll::kDeepEp};
constexpr Layout kShared{.tp_size = 4, .ep_size = 2};  // each expert on two ranks, half of its columns on each
INSTANTIATE_TEST_SUITE_P(Layouts, ExpertMoverTest,
                         testing::Values(Case{"tiny-qwen3-moe", "cpu", kTwo, 0}, Case{"tiny-qwen3-moe", "sim", kTwo, 2},
                                         Case{"tiny-qwen3-moe", "cpu", kShared, 4},
                                         Case{"tiny-deepseek-v3-fp8", "cpu", kFour, 4},
                                         Case{"tiny-deepseek-v3-fp8", "cpu", kTwo, 0}));

// ---- the model: when it moves what

class RebalancerTest : public testing::Test {
 protected:
  static constexpr int64_t kSteps = 4;

  // Two ranks, each its own runner.
  void serve(const moe::RebalanceOptions& options, const std::function<void(Runner&, HarmfulCommunicator&)>& body) {
    auto world = parallel::make_inproc_group(2);
    parallel::on_each(world, [&](parallel::Communicator& comm) {
      Layout layout = kTwo;
      layout.tp_rank = comm.rank();
      auto groups = parallel::make_groups(comm, layout);
      ASSERT_OK(groups);
      HarmfulCommunicator harmful(comm);
      groups->all = &harmful;
      const moe::ExpertPlacement placement{.redundant = 2, .moves = true};
      auto runner = load_runner({.model_path = folder_of("tiny-qwen3-moe"),
                                 .dtype = "float32",
                                 .max_step_tokens = 128,
                                 .max_step_seqs = 8,
                                 .expert_recorder = moe::ExpertRecorder::Options{},
                                 .expert_placement = placement,
                                 .rebalance = options,
                                 .groups = &*groups});
      ASSERT_OK(runner);
      body(**runner, harmful);
    });
  }

  // The same tokens in each step, so that the same experts are busy.
  static std::vector<float> step(Steps& steps) {
    return steps.run({{.row = 0, .ids = {3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26}}}).logits;
  }
};

TEST_F(RebalancerTest, LayersMoveAFewAtATimeAfterANumberOfStepsAndThenNoMore) {
  serve({.steps = kSteps, .layers_at_once = 2}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    const bool first = comm.rank() == 0;
    // What ranks compare before each step.
    std::vector<uint64_t> places(static_cast<size_t>(comm.size()));
    const auto gather_places = [&] {
      const uint64_t own = runner.expert_places();
      ASSERT_OK(comm.all_gather({}, parallel::Element::kI64, &own, places.data(), 1));
      EXPECT_THAT(places, testing::Each(own));
    };
    gather_places();
    const uint64_t at_first = places[0];
    for (int64_t i = 0; i < kSteps; ++i) step(steps);
    EXPECT_EQ(runner.rebalance_counts().layers_moved, 0u);
    EXPECT_EQ(runner.expert_places(), at_first);
    step(steps);
    if (first) {
      EXPECT_EQ(runner.rebalance_counts().layers_moved, 2u);
    }
    gather_places();
    EXPECT_NE(places[0], at_first);
    step(steps);
    if (first) {
      EXPECT_EQ(runner.rebalance_counts().layers_moved, 3u);
    }
    // The same loads again: nothing is gained by moving.
    for (int64_t i = 0; i < 2 * kSteps; ++i) step(steps);
    const auto counts = runner.rebalance_counts();
    if (!first) {
      EXPECT_EQ(counts.layers_moved + counts.layers_kept, 0u) << "one rank counts for all";
      return;
    }
    EXPECT_EQ(counts.layers_moved, 3u);
    EXPECT_GE(counts.layers_kept, 3u);
    EXPECT_GT(counts.moved_bytes, 0u);
    EXPECT_GT(counts.seconds, 0.0);
  });
}

TEST_F(RebalancerTest, BalancednessGrowsAndOutputsStay) {
  serve({.steps = kSteps}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    const auto before = step(steps);
    for (int64_t i = 0; i < 3 * kSteps; ++i) {
      const auto now = step(steps);
      ASSERT_EQ(now.size(), before.size());
      // Summands of experts come from other ranks, so that sums are in another order.
      for (size_t at = 0; at < now.size(); ++at) EXPECT_NEAR(now[at], before[at], 1e-3);
    }
    if (comm.rank() != 0) return;
    const auto counts = runner.rebalance_counts();
    double first_steps = 0, sum = 0;
    uint64_t looked_at = 0;
    for (size_t b = 0; b < std::size(counts.steps[0]); ++b) {
      looked_at += counts.steps[moe::RebalanceCounts::kExtend][b];
      sum += counts.balancedness[moe::RebalanceCounts::kExtend][b];
      if (first_steps == 0) first_steps = counts.balancedness[moe::RebalanceCounts::kExtend][b];
    }
    EXPECT_EQ(looked_at, 3u * kSteps);
    // The worst are those before the move, all alike.
    EXPECT_GT((sum - first_steps) / (2 * kSteps), first_steps / kSteps + 0.02);
  });
}

TEST_F(RebalancerTest, NothingMovesWhereStepsAreBalancedEnough) {
  serve({.steps = kSteps, .at_most_balanced = 0.1}, [&](Runner& runner, HarmfulCommunicator&) {
    Steps steps(runner);
    for (int64_t i = 0; i < 3 * kSteps; ++i) step(steps);
    EXPECT_EQ(runner.rebalance_counts().layers_moved, 0u);
  });
}

TEST_F(RebalancerTest, WeightsThatAreLoadedAnewGoToWhereTheirExpertsAreNow) {
  serve({.steps = kSteps}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    for (int64_t i = 0; i <= kSteps; ++i) step(steps);
    if (comm.rank() == 0) {
      EXPECT_GT(runner.rebalance_counts().layers_moved, 0u);
    }
    const auto before = step(steps);
    ASSERT_OK(runner.reload(folder_of("tiny-qwen3-moe"), {}));
    EXPECT_EQ(step(steps), before);
  });
}

TEST_F(RebalancerTest, ARecordCountsExpertsWhereverTheyAre) {
  serve({.steps = kSteps}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    const auto record = [&](int64_t count) {
      EXPECT_OK(runner.record_experts("start"));
      for (int64_t i = 0; i < count; ++i) step(steps);
      const auto dumped = nlohmann::json::parse(runner.record_experts("dump").value());
      const auto mine = dumped["counts"].get<std::vector<std::vector<int64_t>>>();
      std::vector<int64_t> all;
      for (const auto& layer : mine) all.insert(all.end(), layer.begin(), layer.end());
      EXPECT_OK(comm.all_reduce({}, parallel::Element::kI64, all.data(), all.data(), std::ssize(all)));
      return all;
    };
    auto one = record(1);
    const auto across = record(3 * kSteps);  // experts move meanwhile
    for (int64_t& tokens : one) tokens *= 3 * kSteps;
    EXPECT_EQ(across, one);
    if (comm.rank() == 0) {
      EXPECT_GT(runner.rebalance_counts().layers_moved, 0u);
    }
  });
}

TEST_F(RebalancerTest, R26ALayerWhoseExpertsAreDamagedOnTheirWayStaysAndTheOthersMove) {
  serve({.steps = kSteps}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    for (int64_t i = 1; i < kSteps; ++i) step(steps);
    const auto before = step(steps);
    if (comm.rank() == 1) comm.harm(Harm::kFlipsABit);
    const auto after = step(steps);
    for (size_t at = 0; at < after.size(); ++at) EXPECT_NEAR(after[at], before[at], 1e-3);
    if (comm.rank() != 0) return;
    EXPECT_EQ(runner.rebalance_counts().layers_rolled_back, 1u);
    EXPECT_EQ(runner.rebalance_counts().layers_moved, 2u);
  });
}

TEST_F(RebalancerTest, R26AStepFailsWhereARankDiesWhileExpertsMove) {
  serve({.steps = kSteps}, [&](Runner& runner, HarmfulCommunicator& comm) {
    Steps steps(runner);
    for (int64_t i = 0; i < kSteps; ++i) step(steps);
    if (comm.rank() == 1) comm.harm(Harm::kDies);
    const StepArrays arrays({{.row = 0, .ids = {3, 14, 15, 92}}});
    const auto failed = runner.forward(arrays.view());
    ASSERT_FALSE(failed.ok());
    EXPECT_THAT(failed.error().message, HasSubstr("rank 1 has died"));
  });
}

}  // namespace
}  // namespace sluice::models
