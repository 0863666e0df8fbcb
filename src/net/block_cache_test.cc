#include "net/block_cache.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include "net/next_allocator/next_allocator.h"
#endif

namespace sluice::net {
namespace {

class BlockCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the sanitizer's allocator";
#endif
  }
  // On a thread of its own that keeps blocks.
  template <class Function>
  static void on_keeping_thread(Function function) {
    std::thread([&] {
      keep_freed_blocks();
      function();
    }).join();
  }
};

TEST_F(BlockCacheTest, WhatWasDeletedIsUsedAgain) {
  on_keeping_thread([] {
    for (const size_t bytes : {1u, 24u, 25u, 500u, 1032u, 1033u, 2000u, 4104u}) {
      void* const first = ::operator new(bytes);
      const auto at = reinterpret_cast<uintptr_t>(first);
      ::operator delete(first);
      void* const second = ::operator new(bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(second), at) << bytes;
      ::operator delete(second);
    }
  });
}

TEST_F(BlockCacheTest, BlocksHoldWhatWasAskedForAndDoNotOverlap) {
  on_keeping_thread([] {
    Rng rng(1);
    struct Made {
      std::unique_ptr<char[]> bytes;
      size_t size;
      char filled;
    };
    std::vector<Made> made;
    for (int step = 0; step < 50'000; ++step) {
      if (made.size() < 200 && rng.below(2) == 0) {
        const size_t size = rng.below(rng.below(2) == 0 ? 300 : 6000);
        const char filled = static_cast<char>(step);
        made.push_back({std::unique_ptr<char[]>(new char[size]), size, filled});
        std::memset(made.back().bytes.get(), filled, size);
      } else if (!made.empty()) {
        std::swap(made[rng.below(made.size())], made.back());
        const Made& last = made.back();
        const std::string expected(last.size, last.filled);
        ASSERT_EQ(std::memcmp(last.bytes.get(), expected.data(), last.size), 0);
        made.pop_back();
      }
    }
  });
}

TEST_F(BlockCacheTest, KeepsABoundedPartOfWhatIsDeleted) {
  on_keeping_thread([] {
    std::vector<std::unique_ptr<char[]>> many;
    for (int i = 0; i < 10'000; ++i) many.emplace_back(new char[200]);
    for (int i = 0; i < 10'000; ++i) many.emplace_back(new char[3000]);
    for (int i = 0; i < 100; ++i) many.emplace_back(new char[100'000]);
    const size_t before = kept_block_bytes();
    many.clear();
    const size_t kept = kept_block_bytes() - before;
    EXPECT_GT(kept, size_t{100} << 10);
    EXPECT_LE(kept, size_t{140} << 10) << "two sizes";
  });
}

TEST_F(BlockCacheTest, BlocksPassBetweenThreads) {
  std::vector<std::unique_ptr<std::string>> made;
  for (int i = 0; i < 1000; ++i) made.push_back(std::make_unique<std::string>(static_cast<size_t>(i), 'x'));
  on_keeping_thread([&] {
    made.clear();
    EXPECT_GT(kept_block_bytes(), 0u);
    for (int i = 0; i < 1000; ++i) made.push_back(std::make_unique<std::string>(static_cast<size_t>(i), 'y'));
  });
  for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(*made[i], std::string(i, 'y'));
  EXPECT_EQ(kept_block_bytes(), 0u) << "this thread keeps nothing";
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(BlockCacheTest, WhoeverMadeABlockTakesItBack) {
  const int64_t made = blocks_made_by_next(), taken_back = blocks_taken_back_by_next();
  const auto make_and_delete = [] {
    std::vector<std::unique_ptr<char[]>> many;
    for (size_t bytes = 0; bytes < 6000; ++bytes) many.emplace_back(new char[bytes]);  // some kept, some of no class
    many.clear();
    for (int i = 0; i < 2000; ++i) many.emplace_back(new char[40]);  // more than are kept
  };
  make_and_delete();
  on_keeping_thread(make_and_delete);
  EXPECT_GT(blocks_made_by_next() - made, 10'000);
  EXPECT_EQ(blocks_taken_back_by_next() - taken_back, blocks_made_by_next() - made);
}
#endif

}  // namespace
}  // namespace sluice::net
