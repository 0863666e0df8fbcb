// What a plan says against what a rank maps. Of pages that are touched bench/memory/plan.py measures the same.
#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <numeric>
#include <string>

#include "engine/memory_plan.h"
#include "models/runner.h"

namespace sluice::engine {
namespace {

// Bytes that this process has for itself, touched or not: what it has mapped, and what it has of malloc, whose own
// mappings depend on what was there before. No other program changes them.
int64_t accounted_bytes() {
  const auto heap = ::mallinfo2();
  int64_t mapped = 0;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmData:")) mapped = std::stoll(line.substr(7)) * 1024;
  }
  return mapped - static_cast<int64_t>(heap.arena) + static_cast<int64_t>(heap.uordblks);
}

struct Taken {
  MemoryPlan plan;
  int64_t bytes = 0;
};

// Loads, allocates and computes the largest step, with logits of every row. `override`: of config.json.
Taken take(const std::string& model, const std::string& override, const EngineOptions& options) {
  Taken out;
  const int64_t before = accounted_bytes();
  const StepLimits limits = plan_steps(options);
  auto runner = models::load_runner({.model_path = std::string(SLUICE_FIXTURES_DIR) + "/" + model,
                                     .dtype = options.dtype,
                                     .kv_cache_dtype = options.kv_cache_dtype,
                                     .threads = 1,
                                     .max_step_tokens = limits.max_step_tokens,
                                     .max_step_seqs = limits.max_running_requests,
                                     .config_override = override,
                                     .dummy_weights = true});
  EXPECT_TRUE(runner.ok()) << runner.error().message;
  const auto plan = plan_memory(options, (*runner)->info(), {.limit_bytes = int64_t{1} << 30});
  EXPECT_TRUE(plan.ok()) << plan.error().message;
  out.plan = *plan;
  EXPECT_TRUE((*runner)
                  ->allocate_kv({.slots = plan->max_total_tokens + options.page_size,
                                 .table_rows = static_cast<int32_t>(plan->max_running_requests),
                                 .table_width = static_cast<int32_t>(plan->max_req_len),
                                 .kept_states = static_cast<int32_t>(plan->kept_states)})
                  .ok());
  const auto count = static_cast<size_t>(limits.chunk);
  std::vector<int32_t> places(count);
  std::iota(places.begin(), places.end(), 0);
  std::vector<int32_t> slots(count);
  std::iota(slots.begin(), slots.end(), static_cast<int32_t>(options.page_size));
  std::copy(slots.begin(), slots.end(), (*runner)->slot_table().begin());
  const std::vector<int32_t> tokens(count, 5), starts{0, static_cast<int32_t>(count)},
      lengths{static_cast<int32_t>(count)}, rows{0};
  EXPECT_TRUE((*runner)
                  ->forward({.token_ids = tokens,
                             .positions = places,
                             .kv_slots = slots,
                             .query_start = starts,
                             .seq_lens = lengths,
                             .table_rows = rows,
                             .logit_rows = places})
                  .ok());
  out.bytes = accounted_bytes() - before;
  return out;
}

TEST(MemoryTakenTest, ARankTakesWhatItsPlanSaysAndLittleMore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "another allocator";
#endif
  // Kernels' own memory with one thread, for which a plan has 6 MiB with the program. Nearly all parts are larger.
  constexpr int64_t kBeyond = 4 << 20;
  const struct {
    std::string model, override;
  } cases[] = {{"tiny-llama", R"({"num_hidden_layers": 24, "vocab_size": 8192})"},
               {"tiny-deepseek-v3", R"({"num_hidden_layers": 12, "vocab_size": 8192})"},
               {"tiny-minimax-text-01", R"({"vocab_size": 8192})"}};
  for (const auto& [model, override] : cases) {
    const auto options = engine_option_table().parse({"--model=m", "--dtype=float32", "--max-total-tokens=4096",
                                                      "--chunked-prefill-size=512", "--max-running-requests=16"});
    ASSERT_TRUE(options.ok()) << options.error().message;
    take(model, override, *options);  // what libraries and threads have once
    const Taken taken = take(model, override, *options);
    const int64_t planned = taken.plan.total_bytes();
    EXPECT_TRUE(taken.bytes >= planned && taken.bytes <= planned + kBeyond)
        << taken.bytes << " taken, " << planned << " planned; " << model << ": weights " << taken.plan.weight_bytes
        << ", KV " << taken.plan.kv_bytes << ", states " << taken.plan.state_bytes << ", buffers "
        << taken.plan.buffer_bytes << ", tables " << taken.plan.table_bytes;
  }
}

}  // namespace
}  // namespace sluice::engine
