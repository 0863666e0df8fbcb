#include "gateway/memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <memory>

namespace sluice::gateway {
namespace {

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_minflt;
}

TEST(MemoryTest, APromptUsesWhatTheOneBeforeItFreed) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "another allocator";
#endif
  keep_freed_memory();
  const auto prompt = [] {
    constexpr size_t kBytes = 400'000;  // about a hundred pages
    const std::unique_ptr<char[]> body(new char[kBytes]), text(new char[kBytes]);
    std::memset(body.get(), 'x', kBytes);
    std::memcpy(text.get(), body.get(), kBytes);
    EXPECT_EQ(text[kBytes - 1], 'x');
  };
  prompt();
  const int64_t before = page_faults();
  for (int i = 0; i < 100; ++i) prompt();
  EXPECT_LT(page_faults() - before, 1000) << "by default 20,000";
}

}  // namespace
}  // namespace sluice::gateway
