#include "base/machine.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace sluice {
namespace {

// A system's files in a folder of the test's own.
class MachineTest : public ::testing::Test {
 protected:
  MachineTest() : root_(std::filesystem::temp_directory_path() / ("sluice-machine-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(root_);
  }
  ~MachineTest() override { std::filesystem::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    const auto path = root_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  CgroupPlaces places() const { return {.membership = (root_ / "self").string(), .mount = (root_ / "fs").string()}; }

  static int64_t allowed() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  }

  const std::filesystem::path root_;
};

TEST_F(MachineTest, WithoutCgroupsTheAffinityCounts) {
  EXPECT_EQ(usable_cores(places()), allowed());
  EXPECT_EQ(memory_limit_bytes(places()), int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE));
}

TEST_F(MachineTest, TheAffinityBoundsItWhateverTheQuota) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  write("self", "0::/pod");
  write("fs/pod/cpu.max", "800000 100000");
  const int64_t cores = usable_cores(places());
  sched_setaffinity(0, sizeof before, &before);
  EXPECT_EQ(cores, 1);
}

TEST_F(MachineTest, AQuotaOfEitherKindBoundsTheCores) {
  if (allowed() < 2) GTEST_SKIP() << "needs two cores";
  write("self", "0::/pod/container");
  write("fs/pod/container/cpu.max", "max 100000");
  EXPECT_EQ(usable_cores(places()), allowed()) << "no limit";
  write("fs/pod/container/cpu.max", "100000 100000");
  EXPECT_EQ(usable_cores(places()), 1);
  write("fs/pod/container/cpu.max", "150000 100000");
  EXPECT_EQ(usable_cores(places()), 2) << "rounded up";
  write("fs/pod/cpu.max", "50000 100000");
  EXPECT_EQ(usable_cores(places()), 1) << "of an outer group, and at least one";

  write("self", "5:memory:/m\n4:cpu,cpuacct:/job");
  write("fs/cpu,cpuacct/job/cpu.cfs_quota_us", "-1");
  write("fs/cpu,cpuacct/job/cpu.cfs_period_us", "100000");
  EXPECT_EQ(usable_cores(places()), allowed()) << "-1 is no limit";
  write("fs/cpu,cpuacct/job/cpu.cfs_quota_us", "100000");
  EXPECT_EQ(usable_cores(places()), 1);
  // In a namespace of its own a container is at the root of what it sees, whatever its path says.
  write("self", "4:cpu,cpuacct:/elsewhere/deep");
  write("fs/cpu,cpuacct/cpu.cfs_quota_us", "100000");
  write("fs/cpu,cpuacct/cpu.cfs_period_us", "100000");
  EXPECT_EQ(usable_cores(places()), 1);
}

TEST_F(MachineTest, TheSmallestLimitOfMemoryCounts) {
  write("self", "0::/pod/container");
  write("fs/pod/container/memory.max", "max");
  write("fs/pod/memory.max", "123456");
  EXPECT_EQ(memory_limit_bytes(places()), 123456);
  write("fs/pod/container/memory.max", "1000");
  EXPECT_EQ(memory_limit_bytes(places()), 1000);
  write("self", "4:memory:/job");
  write("fs/memory/job/memory.limit_in_bytes", "777");
  EXPECT_EQ(memory_limit_bytes(places()), 777);
}

TEST_F(MachineTest, OddFilesBoundNothing) {
  for (const char* odd : {"", "x", "-5 100000", "0 100000", "100000", "100000 0", "max"}) {
    write("self", "0::/pod\nno colons\n1:");
    write("fs/pod/cpu.max", odd);
    EXPECT_EQ(usable_cores(places()), allowed()) << odd;
  }
}

TEST_F(MachineTest, ColdBytesAreMoreThanCachesAndLessThanMemory) {
  EXPECT_LE(cold_bytes(), memory_limit_bytes() / 8);
  EXPECT_GE(cold_bytes(), std::min<int64_t>(memory_limit_bytes() / 8, 256 << 20));
}

}  // namespace
}  // namespace sluice
