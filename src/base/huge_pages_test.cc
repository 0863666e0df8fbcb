#include "base/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace sluice {
namespace {

// Flags of the mapping that `at` lies in (proc(5)).
std::string flags_at(const void* at) {
  std::ifstream maps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto place = reinterpret_cast<unsigned long>(at);
      here = place >= begin && place < end;
    } else if (here && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

TEST(HugePagesTest, AreAskedForOnThePagesThatLieInTheMemoryWhole) {
  constexpr size_t kPage = 4096, kPages = 1024;
  void* const memory =
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const at = static_cast<char*>(memory);
  prefer_huge_pages(at + 100, 50);  // no whole page
  EXPECT_EQ(flags_at(at).find(" hg "), std::string::npos) << flags_at(at);
  prefer_huge_pages(at + 1, (kPages - 1) * kPage);
  if (flags_at(at + 2 * kPage).find(" hg ") == std::string::npos &&
      !std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled")) {
    GTEST_SKIP() << "this system has no large pages";
  }
  EXPECT_EQ(flags_at(at).find(" hg "), std::string::npos) << "the first page is not all ours";
  EXPECT_NE(flags_at(at + kPage).find(" hg "), std::string::npos) << flags_at(at + kPage);
  EXPECT_EQ(flags_at(at + (kPages - 1) * kPage).find(" hg "), std::string::npos) << "nor is the last";
  ::munmap(memory, kPages * kPage);
}

}  // namespace
}  // namespace sluice
