// What every communicator must do, whatever carries its bytes: for each row of the registry.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <thread>

#include "base/rng.h"
#include "parallel/group_fixture.h"
#include "parallel/inproc.h"
#include "parallel/latency.h"
#include "testing/fake_clock.h"
#include "testing/seed.h"

namespace sluice::parallel {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr Element kElements[] = {Element::kU8,  Element::kI32,  Element::kI64,   Element::kF32,
                                 Element::kF16, Element::kBf16, Element::kF8E4M3};

class CommunicatorConformance : public ::testing::TestWithParam<CommunicatorRow> {
 protected:
  Ranks make(int size, const GroupOptions& options = {}) { return make_ranks(GetParam(), size, options); }
};

TEST_P(CommunicatorConformance, GathersInRankOrder) {
  for (const int size : {1, 2, 3, 4, 8}) {
    auto ranks = make(size);
    on_each(ranks, [&](Communicator& comm) {
      const std::vector<int32_t> in = {comm.rank(), comm.rank() * 10};
      std::vector<int32_t> out(2 * static_cast<size_t>(size), -1);
      ASSERT_OK(comm.all_gather({}, Element::kI32, in.data(), out.data(), 2));
      for (int i = 0; i < size; ++i) {
        EXPECT_EQ(out[2 * static_cast<size_t>(i)], i);
        EXPECT_EQ(out[2 * static_cast<size_t>(i) + 1], i * 10);
      }
    });
  }
}

TEST_P(CommunicatorConformance, SumsHalvesInFloat32AndRankOrder) {
  // Added one by one in bf16, each of the small ones would be lost.
  auto ranks = make(4);
  on_each(ranks, [&](Communicator& comm) {
    const uint16_t in = tensor::float_to_bf16(comm.rank() == 0 ? 256.0f : 0.75f);
    uint16_t out = 0;
    ASSERT_OK(comm.all_reduce({}, Element::kBf16, &in, &out, 1));
    EXPECT_EQ(tensor::bf16_to_float(out), 258.0f);  // 258.25, rounded once
  });
}

TEST_P(CommunicatorConformance, CarriesOutWhatIsAskedAtRandom) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(fmt::format("SLUICE_TEST_SEED={}", seed));
  for (const int size : {1, 2, 3, 4, 8}) {
    const int calls = random_calls(size == 4 ? 10'000 : 1000);
    auto ranks = make(size);
    on_each(ranks, [&](Communicator& comm) {
      RandomCalls random(seed + static_cast<uint64_t>(size), size, largest_bytes());
      for (int i = 0; i < calls; ++i) {
        if (!random.next(comm)) return;  // reported
      }
    });
  }
}

TEST_P(CommunicatorConformance, TakesMemoryOfItsOwnAsInput) {
  auto ranks = make(3);
  on_each(ranks, [&](Communicator& comm) {
    for (const int64_t count : {0, 1, 1000, 300'000}) {
      for (int round = 0; round < 4; ++round) {
        const auto buffer = comm.buffer({}, static_cast<size_t>(count) * 4);
        ASSERT_OK(buffer);
        auto* in = static_cast<float*>(*buffer);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(in) % 64, 0u);
        for (int64_t i = 0; i < count; ++i) in[i] = static_cast<float>(comm.rank() + round + i % 100);
        std::vector<float> out(static_cast<size_t>(count));
        float* to = round % 2 == 0 ? out.data() : in;  // in place too
        ASSERT_OK(comm.all_reduce({}, Element::kF32, in, to, count));
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(to[i], static_cast<float>(3 + 3 * (round + i % 100))) << i << " of " << count;
        }
      }
    }
  });
}

TEST_P(CommunicatorConformance, CountsWhatCameFromOthers) {
  auto ranks = make(3);
  on_each(ranks, [&](Communicator& comm) {
    std::vector<float> in(12), out(12);
    ASSERT_OK(comm.barrier());
    EXPECT_EQ(comm.received_bytes(), 0u);
    ASSERT_OK(comm.all_gather({}, Element::kF32, in.data(), out.data(), 4));
    EXPECT_EQ(comm.received_bytes(), 32u);
    const std::vector<int64_t> counts = {0, 2, 10};
    ASSERT_OK(comm.reduce_scatter_v({}, Element::kF32, in.data(), out.data(), counts));
    EXPECT_EQ(comm.received_bytes(), 32u + 8 * static_cast<size_t>(counts[static_cast<size_t>(comm.rank())]));
    ASSERT_OK(comm.broadcast({}, Element::kU8, out.data(), 48, 1));
    EXPECT_EQ(comm.received_bytes(),
              32u + 8 * static_cast<size_t>(counts[static_cast<size_t>(comm.rank())]) + (comm.rank() == 1 ? 0 : 48));
  });
}

TEST_P(CommunicatorConformance, ReducesOnADeviceThatTheHostDoesNotSee) {
  struct Device {
    std::unique_ptr<kernels::Backend> backend = std::move(kernels::make_backend("sim", 1)).value();
    std::unique_ptr<kernels::Stream> stream = backend->make_stream();
  };
  std::vector<Device> devices(2);
  auto ranks = make(2);
  on_each(ranks, [&](Communicator& comm) {
    const Device& device = devices[static_cast<size_t>(comm.rank())];
    const kernels::Context context{device.backend.get(), device.stream.get()};
    const std::vector<float> values = {1.5f, 2.5f, static_cast<float>(comm.rank())};
    void* const in = comm.buffer(context, sizeof(float) * 3).value();
    device.backend->copy_to_device(context, in, values.data(), sizeof(float) * 3);
    ASSERT_OK(comm.all_reduce(context, Element::kF32, in, in, 3));
    std::vector<float> out(3);
    device.backend->copy_to_host(context, out.data(), in, sizeof(float) * 3);
    device.backend->synchronize(context);
    EXPECT_EQ(out, (std::vector<float>{3, 5, 1}));
  });
}

TEST_P(CommunicatorConformance, SplitsIntoGroupsByColourAndKey) {
  auto ranks = make(4);
  on_each(ranks, [&](Communicator& comm) {
    // Ranks 3, 1 and 2, 0, turned round by their keys.
    auto half = comm.split(comm.rank() % 2, -comm.rank(), "half");
    ASSERT_OK(half);
    EXPECT_EQ((*half)->size(), 2);
    EXPECT_EQ((*half)->rank(), comm.rank() < 2 ? 1 : 0);
    EXPECT_EQ((*half)->world_rank((*half)->rank()), comm.rank());
    int32_t sum = comm.rank();
    ASSERT_OK((*half)->all_reduce({}, Element::kI32, &sum, &sum, 1));
    EXPECT_EQ(sum, comm.rank() % 2 == 0 ? 2 : 4);

    auto some = comm.split(comm.rank() == 2 ? -1 : 0, 0, "some");
    ASSERT_OK(some);
    EXPECT_EQ(*some == nullptr, comm.rank() == 2);
    if (*some) {
      EXPECT_EQ((*some)->size(), 3);
      auto pair = (*some)->split((*some)->rank() == 0 ? 0 : 1, 0, "pair");
      ASSERT_OK(pair);
      ASSERT_OK((*pair)->barrier());
    }
  });
}

TEST_P(CommunicatorConformance, TellsEveryRankWhoAskedForWhatWhenTheyDiverge) {
  auto ranks = make(3);
  std::vector<std::string> errors(3);
  on_each(ranks, [&](Communicator& comm) {
    ASSERT_OK(comm.barrier());
    float values[4] = {7, 7, 7, 7};
    const auto result = comm.rank() == 1 ? comm.barrier() : comm.all_reduce({}, Element::kF32, values, values, 4);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kProtocol);
    errors[static_cast<size_t>(comm.rank())] = result.error().message;
    EXPECT_THAT(values, Each(7.0f));
    const auto later = comm.barrier();
    ASSERT_FALSE(later.ok());
    EXPECT_EQ(later.error().message, result.error().message);
  });
  EXPECT_THAT(errors, Each(HasSubstr("ranks 0, 2 ask for all_reduce #2 (sum of 4 f32); rank 1 asks for barrier #2")));
}

TEST_P(CommunicatorConformance, FindsAnyDifferenceBeforeDataMove) {
  const std::vector<int64_t> counts = {1, 2};
  const std::vector<int64_t> other_counts = {2, 1};
  const std::function<Result<void>(Communicator&, void*)> pairs[][2] = {
      {[](auto& c, void* d) { return c.all_reduce({}, Element::kF32, d, d, 2); },
       [](auto& c, void* d) { return c.all_reduce({}, Element::kF32, d, d, 3); }},
      {[](auto& c, void* d) { return c.all_reduce({}, Element::kF32, d, d, 2); },
       [](auto& c, void* d) { return c.all_reduce({}, Element::kI32, d, d, 2); }},
      {[](auto& c, void* d) { return c.all_reduce({}, Element::kF32, d, d, 2); },
       [](auto& c, void* d) { return c.all_reduce({}, Element::kF32, d, d, 2, Reduction::kMax); }},
      {[](auto& c, void* d) { return c.broadcast({}, Element::kF32, d, 2, 0); },
       [](auto& c, void* d) { return c.broadcast({}, Element::kF32, d, 2, 1); }},
      {[&](auto& c, void* d) { return c.all_gather_v({}, Element::kU8, "abc", d, counts); },
       [&](auto& c, void* d) { return c.all_gather_v({}, Element::kU8, "abc", d, other_counts); }},
      {[&](auto& c, void* d) { return c.all_to_all_v({}, Element::kU8, "abc", counts, d, counts); },
       [&](auto& c, void* d) { return c.all_to_all_v({}, Element::kU8, "abc", counts, d, counts); }},
  };
  for (const auto& pair : pairs) {
    auto ranks = make(2);
    on_each(ranks, [&](Communicator& comm) {
      std::vector<float> data(8, 7.0f);
      const auto result = pair[comm.rank()](comm, data.data());
      ASSERT_FALSE(result.ok());
      EXPECT_THAT(result.error().message, AllOf(HasSubstr("group world: ranks do not agree"), HasSubstr("#1")));
      EXPECT_THAT(data, Each(7.0f));
    });
  }
}

TEST_P(CommunicatorConformance, RefusesWhatNoRankCanMean) {
  auto ranks = make(1);
  float value = 0;
  const std::vector<int64_t> two = {1, 1};
  EXPECT_FALSE(ranks[0]->broadcast({}, Element::kF32, &value, 1, 1).ok());
  EXPECT_FALSE(ranks[0]->all_gather_v({}, Element::kF32, &value, &value, two).ok());
  EXPECT_FALSE(ranks[0]->all_reduce({}, Element::kF8E4M3, &value, &value, 1).ok());
  EXPECT_OK(ranks[0]->barrier());
}

TEST_P(CommunicatorConformance, NamesWhoIsSilentForTooLong) {
  testing::FakeClock clock;
  auto ranks = make(3, {.name = "tp", .longest_sleep = std::chrono::milliseconds(1), .clock = &clock});
  on_each(ranks, [&](Communicator& comm) {
    ASSERT_OK(comm.barrier());
    if (comm.rank() == 1) {
      comm.progress({.step = 39, .phase = Phase::kExperts, .layer = 7});
    } else {
      comm.progress({.step = 40, .phase = Phase::kDispatch, .layer = 3});
      while (comm.last_progress(1).step != 39) {  // it travels, with some members once a second
        clock.advance(std::chrono::milliseconds(1));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  });
  clock.advance(std::chrono::seconds(6));  // nobody waited: this counts for nothing
  const TimePoint begin = clock.now();
  std::jthread time([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      clock.advance(std::chrono::milliseconds(10));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  std::vector<std::string> errors(3);
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) return;
    const auto result = comm.barrier();
    EXPECT_GE(clock.now() - begin, std::chrono::seconds(5));
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kTimeout);
    errors[static_cast<size_t>(comm.rank())] = result.error().message;
  });
  // Who found it out is the machine's choice.
  for (const int rank : {0, 2}) {
    EXPECT_THAT(errors[static_cast<size_t>(rank)],
                AllOf(HasSubstr("group tp: rank "),
                      HasSubstr("waits in barrier #2 (step 40, layer 3, dispatch) for rank 1: no sign of rank 1 for "),
                      HasSubstr("(step 39, layer 7, experts)")));
  }
  while (!ranks[1]->failure()) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // it travels, too
  const auto later = ranks[1]->barrier();
  ASSERT_FALSE(later.ok());
  EXPECT_THAT(errors, ::testing::Contains(later.error().message));
}

TEST_P(CommunicatorConformance, CommonMemoryIsSeenByAllOfTheGroupWhereThereIsSome) {
  const bool on_several_hosts = GetParam().name == "gloo";
  auto ranks = make(4);
  on_each(ranks, [&](Communicator& comm) {
    const auto pair = std::move(comm.split(comm.rank() / 2, 0, "pair")).value();
    std::vector<std::shared_ptr<std::byte>> pieces;
    for (const size_t bytes : {size_t{1}, size_t{100'000}}) {
      auto memory = pair->common_memory(bytes);
      ASSERT_OK(memory);
      ASSERT_EQ(*memory == nullptr, on_several_hosts) << "ranks of one host have some";
      if (!*memory) {
        EXPECT_EQ(pieces.size(), 0u);
        EXPECT_EQ(comm.failure(), std::nullopt);
        return;
      }
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->get()) % 4096, 0u);
      EXPECT_EQ(memory->get()[bytes - 1], std::byte{0});
      ASSERT_OK(pair->barrier());
      if (pair->rank() == 1) memory->get()[bytes - 1] = static_cast<std::byte>(1 + comm.rank());
      ASSERT_OK(pair->barrier());
      EXPECT_EQ(memory->get()[bytes - 1], static_cast<std::byte>(2 + comm.rank() / 2 * 2));
      pieces.push_back(std::move(*memory));
    }
    EXPECT_NE(pieces[0], pieces[1]);
  });
}

TEST_P(CommunicatorConformance, LeavesASlowStepAlone) {
  testing::FakeClock clock;
  auto ranks = make(2, {.longest_sleep = std::chrono::milliseconds(1), .clock = &clock});
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      for (int layer = 0; layer < 50; ++layer) {
        clock.advance(std::chrono::seconds(4));
        comm.progress({.step = 1, .phase = Phase::kAttention, .layer = layer});
        while (ranks[0]->last_progress(1).layer != layer) std::this_thread::yield();
      }
    }
    EXPECT_OK(comm.barrier());
  });
}

TEST_P(CommunicatorConformance, WakesAllWaitersOnAbort) {
  auto ranks = make(4);
  std::vector<std::unique_ptr<Communicator>> pairs(4);
  on_each(ranks, [&](Communicator& comm) {
    pairs[static_cast<size_t>(comm.rank())] = std::move(comm.split(comm.rank() / 2, 0, "pair")).value();
  });
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 3) {
      comm.abort("rank 2 was killed by SIGKILL");
      comm.abort("a later reason");
    } else {
      // Ranks 0 and 1 meet; rank 2 waits for rank 3 until it is told.
      auto& pair = *pairs[static_cast<size_t>(comm.rank())];
      while (pair.barrier().ok()) {
      }
    }
    const auto result = comm.barrier();
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().message, "rank 2 was killed by SIGKILL");
    ASSERT_TRUE(comm.failure());
    EXPECT_EQ(comm.failure()->message, "rank 2 was killed by SIGKILL");
  });
}

// Of whatever member: here of the reference, without losing time.
Result<Ranks> make_delayed(int size, const GroupOptions& options) {
  Ranks ranks;
  for (auto& inner : make_inproc_group(size, options)) {
    ranks.push_back(add_latency(std::move(inner), {.latency = std::chrono::milliseconds(1), .sleep = [](Duration) {}}));
  }
  return ranks;
}

INSTANTIATE_TEST_SUITE_P(Delayed, CommunicatorConformance,
                         ::testing::Values(CommunicatorRow{"delayed", make_delayed, "the reference, behind a delay"}),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Members, CommunicatorConformance, ::testing::ValuesIn(communicators()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice::parallel
