#include "models/locate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

namespace sluice::models {
namespace {

namespace fs = std::filesystem;

// A home of its own, and the variables that lead to the cache put back afterwards.
class LocateTest : public ::testing::Test {
 protected:
  LocateTest() {
    for (const char* name : kVariables) {
      const char* value = std::getenv(name);
      before_.push_back(value == nullptr ? std::nullopt : std::optional<std::string>(value));
      ::unsetenv(name);
    }
    fs::create_directories(root_);
    ::setenv("HOME", root_.c_str(), 1);
  }
  ~LocateTest() override {
    for (size_t i = 0; i < before_.size(); ++i) {
      if (before_[i]) {
        ::setenv(kVariables[i], before_[i]->c_str(), 1);
      } else {
        ::unsetenv(kVariables[i]);
      }
    }
    fs::remove_all(root_);
  }

  static void write(const fs::path& path, const std::string& text = "{}") {
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  // A snapshot as the hub's own tools lay it out.
  static fs::path snapshot(const fs::path& cache, const std::string& revision, const std::string& file) {
    const fs::path folder = cache / "models--org--name" / "snapshots" / revision;
    write(folder / file);
    return folder;
  }
  static std::string refusal(const std::string& path) {
    const auto found = locate_model(path);
    return found.ok() ? "(found " + *found + ")" : found.error().message;
  }

  static constexpr const char* kVariables[] = {"HF_HUB_CACHE", "HF_HOME", "HOME"};
  std::vector<std::optional<std::string>> before_;
  const fs::path root_ = fs::path(::testing::TempDir()) / ("sluice_locate_test_" + std::to_string(::getpid()));
};

TEST_F(LocateTest, FindsAFolderAndAGgufFile) {
  write(root_ / "model" / "config.json");
  write(root_ / "model.gguf");
  EXPECT_EQ(locate_model(root_ / "model").value(), (root_ / "model").string());
  EXPECT_EQ(locate_model(root_ / "model.gguf").value(), (root_ / "model.gguf").string());
}

TEST_F(LocateTest, FindsASnapshotOfTheHubCache) {
  const fs::path folder = snapshot(root_ / ".cache" / "huggingface" / "hub", "abc", "config.json");
  EXPECT_EQ(locate_model("org/name").value(), folder.string());
}

TEST_F(LocateTest, TakesTheRevisionThatMainNames) {
  const fs::path cache = root_ / ".cache" / "huggingface" / "hub";
  for (const char* revision : {"aaa", "bbb", "ccc"}) snapshot(cache, revision, "config.json");
  write(cache / "models--org--name" / "refs" / "main", "bbb");
  EXPECT_EQ(fs::path(locate_model("org/name").value()).filename(), "bbb");
}

TEST_F(LocateTest, TheHubsOwnVariablesComeFirst) {
  snapshot(root_ / ".cache" / "huggingface" / "hub", "home", "config.json");
  snapshot(root_ / "hf" / "hub", "hf-home", "config.json");
  snapshot(root_ / "cache", "hub-cache", "config.json");
  EXPECT_EQ(fs::path(locate_model("org/name").value()).filename(), "home");
  ::setenv("HF_HOME", (root_ / "hf").c_str(), 1);
  EXPECT_EQ(fs::path(locate_model("org/name").value()).filename(), "hf-home");
  ::setenv("HF_HUB_CACHE", (root_ / "cache").c_str(), 1);
  EXPECT_EQ(fs::path(locate_model("org/name").value()).filename(), "hub-cache");
}

TEST_F(LocateTest, SaysHowToDownloadAHubModel) {
  const std::string message = refusal("org/name");
  EXPECT_NE(message.find("huggingface-cli download org/name"), std::string::npos) << message;
  EXPECT_NE(message.find((root_ / ".cache/huggingface/hub").string()), std::string::npos) << message;
}

TEST_F(LocateTest, ASnapshotWithoutItsFilesIsNotThere) {
  snapshot(root_ / ".cache" / "huggingface" / "hub", "abc", "README.md");
  EXPECT_NE(refusal("org/name").find("huggingface-cli download"), std::string::npos);
}

TEST_F(LocateTest, ARevisionCannotLeadOutOfTheCache) {
  const fs::path cache = root_ / ".cache" / "huggingface" / "hub";
  snapshot(cache, "abc", "config.json");
  write(root_ / "elsewhere" / "config.json");
  write(cache / "models--org--name" / "refs" / "main", "../../../../../elsewhere");
  EXPECT_EQ(fs::path(locate_model("org/name").value()).filename(), "abc");
}

TEST_F(LocateTest, SaysWhatIsWrongWithThePath) {
  fs::create_directories(root_ / "empty");
  write(root_ / "weights.bin");
  EXPECT_NE(refusal("").find("--model-path is empty"), std::string::npos);
  EXPECT_NE(refusal(root_ / "empty").find("no config.json"), std::string::npos);
  EXPECT_NE(refusal(root_ / "weights.bin").find("must be a .gguf file"), std::string::npos);
  EXPECT_NE(refusal("nowhere").find("no such file or folder"), std::string::npos);
  EXPECT_NE(refusal("./org/name").find("no such file or folder"), std::string::npos);
}

}  // namespace
}  // namespace sluice::models
