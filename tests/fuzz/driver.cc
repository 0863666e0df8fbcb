// Drives the targets without libFuzzer, so that they run wherever GCC does: takes the seeds of tests/fuzz/inputs,
// changes them at random and shows them to the target. The same seed gives the same inputs. It does not look at
// coverage; the words of an input file stand for what a coverage-guided fuzzer would find out.
//
//   fuzz_driver INPUTS [--target NAME] [--seed N] [--iterations N] [--seconds S] [--unpack FOLDER] [FILE...]
//
// Without FILE: so many inputs (or seconds) for each target. With FILE: these inputs, as they are. --unpack writes the
// seeds as files, for libFuzzer. An input that ends the process is written to ./fuzz-<target>-<seed>-<iteration> first.
#include <sanitizer/common_interface_defs.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"

#define SLUICE_FUZZ_TARGET(name) extern "C" int fuzz_##name(const uint8_t* data, size_t size);
#include "fuzz_targets.inc"
#undef SLUICE_FUZZ_TARGET

namespace {

using sluice::Rng;

struct Target {
  std::string_view name;
  int (*run)(const uint8_t* data, size_t size);
};
constexpr Target kTargets[] = {
#define SLUICE_FUZZ_TARGET(name) {#name, fuzz_##name},
#include "fuzz_targets.inc"
};

constexpr size_t kMaxSize = 4096;

struct Options {
  std::filesystem::path inputs;
  std::string target;  // empty = all
  uint64_t seed = 1;
  uint64_t iterations = 100'000;
  double seconds = 0;  // set: instead of iterations
  std::filesystem::path unpack;
  std::vector<std::string> files;
};

struct Inputs {
  std::vector<std::string> seeds, words;
};

// What is being run, for the case that it is the last.
struct {
  std::string_view target;
  const std::string* input = nullptr;
  uint64_t seed = 0, iteration = 0;
} current;

void keep_current() {
  if (current.input == nullptr) return;
  char name[128];
  std::snprintf(name, sizeof name, "fuzz-%.*s-%llu-%llu", static_cast<int>(current.target.size()),
                current.target.data(), static_cast<unsigned long long>(current.seed),
                static_cast<unsigned long long>(current.iteration));
  if (std::FILE* file = std::fopen(name, "wb")) {
    std::fwrite(current.input->data(), 1, current.input->size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "the input is in %s\n", name);
  current.input = nullptr;
}

void on_abort(int) {
  keep_current();
  std::_Exit(134);
}

// \r, \n, \t, \\ and \xNN.
std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char kind = text[++i];
    if (kind == 'x' && i + 2 < text.size()) {
      out += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += kind == 'r' ? '\r' : kind == 'n' ? '\n' : kind == 't' ? '\t' : kind;
    }
  }
  return out;
}

// Lines "seed ..." and "word ..."; others are comments.
Inputs read_inputs(const std::filesystem::path& path) {
  Inputs inputs;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("seed ")) inputs.seeds.push_back(unescape(line.substr(5)));
    if (line.starts_with("word ")) inputs.words.push_back(unescape(line.substr(5)));
  }
  if (inputs.seeds.empty()) {
    std::fprintf(stderr, "%s has no seeds\n", path.c_str());
    std::exit(2);
  }
  return inputs;
}

template <class List>
const auto& pick(const List& list, Rng& rng) {
  return list[rng.below(list.size())];
}

void mutate(std::string& input, const Inputs& inputs, Rng& rng) {
  const size_t at = rng.below(input.size() + 1);
  const size_t length = rng.below(std::min<size_t>(input.size() - at, 32) + 1);
  switch (rng.below(9)) {
    case 0:
      if (at < input.size()) input[at] ^= static_cast<char>(1 << rng.below(8));
      break;
    case 1:
      if (at < input.size()) input[at] = static_cast<char>(rng.below(256));
      break;
    case 2:
      input.erase(at, length);
      break;
    case 3:  // a piece once more, somewhere
      input.insert(rng.below(input.size() + 1), input.substr(at, length));
      break;
    case 4:
      input.insert(at, 1 + rng.below(3), static_cast<char>(rng.below(256)));
      break;
    case 5: {  // the beginning of this, the end of another
      const std::string& other = pick(inputs.seeds, rng);
      input = input.substr(0, at) + other.substr(std::min(other.size(), at));
      break;
    }
    case 6:
      input.resize(at);
      break;
    default:
      if (!inputs.words.empty()) input.replace(at, rng.below(2) == 0 ? 0 : length, pick(inputs.words, rng));
      break;
  }
  if (input.size() > kMaxSize) input.resize(kMaxSize);
}

void run(const Target& target, const std::string& input) {
  current.input = &input;
  // A copy of exactly this size: a read beyond it is seen.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  target.run(bytes.data(), bytes.size());
  current.input = nullptr;
}

void fuzz(const Target& target, const Options& options) {
  using Clock = std::chrono::steady_clock;
  const Inputs inputs = read_inputs(options.inputs / (std::string(target.name) + ".txt"));
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  Rng rng(options.seed);
  uint64_t count = 0;
  for (const std::string& seed : inputs.seeds) run(target, seed);
  for (; options.seconds > 0 ? (count % 256 != 0 || elapsed() < options.seconds) : count < options.iterations;
       ++count) {
    std::string input = pick(inputs.seeds, rng);
    for (uint64_t left = 1 + rng.below(6); left > 0; --left) mutate(input, inputs, rng);
    current.iteration = count;
    run(target, input);
  }
  std::printf("%.*s: %llu inputs from %zu seeds in %.1f s, seed %llu\n", static_cast<int>(target.name.size()),
              target.name.data(), static_cast<unsigned long long>(count), inputs.seeds.size(), elapsed(),
              static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);
}

void unpack(const Target& target, const Options& options) {
  const Inputs inputs = read_inputs(options.inputs / (std::string(target.name) + ".txt"));
  const auto folder = options.unpack / target.name;
  std::filesystem::create_directories(folder);
  for (size_t i = 0; i < inputs.seeds.size(); ++i) {
    std::ofstream(folder / ("seed" + std::to_string(i)), std::ios::binary) << inputs.seeds[i];
  }
}

[[noreturn]] void usage(const char* program) {
  std::fprintf(
      stderr,
      "usage: %s INPUTS [--target NAME] [--seed N] [--iterations N] [--seconds S] [--unpack FOLDER] [FILE...]\n",
      program);
  std::exit(2);
}

Options parse(std::span<char*> arguments) {
  Options options;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string_view flag = arguments[i];
    if (!flag.starts_with("--")) {
      if (options.inputs.empty()) {
        options.inputs = flag;
      } else {
        options.files.emplace_back(flag);
      }
      continue;
    }
    if (++i == arguments.size()) usage(arguments[0]);
    const std::string value = arguments[i];
    if (flag == "--target") {
      options.target = value;
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else if (flag == "--iterations") {
      options.iterations = std::strtoull(value.c_str(), nullptr, 10);
    } else if (flag == "--seconds") {
      options.seconds = std::strtod(value.c_str(), nullptr);
    } else if (flag == "--unpack") {
      options.unpack = value;
    } else {
      usage(arguments[0]);
    }
  }
  if (options.inputs.empty()) usage(arguments[0]);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse({argv, static_cast<size_t>(argc)});
  __sanitizer_set_death_callback(keep_current);
  std::signal(SIGABRT, on_abort);
  bool known = false;
  for (const Target& target : kTargets) {
    if (!options.target.empty() && options.target != target.name) continue;
    known = true;
    current = {.target = target.name, .seed = options.seed};
    if (!options.unpack.empty()) {
      unpack(target, options);
    } else if (options.files.empty()) {
      fuzz(target, options);
    }
    for (const std::string& path : options.files) {
      std::ifstream file(path, std::ios::binary);
      run(target, std::string(std::istreambuf_iterator<char>(file), {}));
    }
  }
  if (!known) usage(argv[0]);
  return 0;
}
