// Tokenizes documents on one thread: what bench/tokenizer/compare.py measures beside the `tokenizers` package, and what
// tests/soak/tokenizer_fuzz.py compares with it.
//
//   tokenizer_bench time FOLDER DOCUMENTS ROUNDS   prints JSON: seconds of each round, number and checksum of the ids
//   tokenizer_bench turns FOLDER DOCUMENTS ROUNDS  the same for a prompt that grows by a document at a time, tokenized
//   after each:
//                                                  as a whole each time, and by the encoder that remembers
//   tokenizer_bench ids FOLDER DOCUMENTS           prints the ids of each document, a line each
//
// FOLDER holds a tokenizer. DOCUMENTS is a file of texts, each after its length in bytes (32 bits, little-endian).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tokenizer/files.h"
#include "tokenizer/prompt_encoder.h"

namespace {

using sluice::tokenizer::PromptEncoder;
using sluice::tokenizer::Tokenizer;

std::vector<std::string> read_documents(const char* path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<std::string> out;
  char head[4];
  while (in.read(head, 4)) {
    uint32_t size = 0;
    std::memcpy(&size, head, 4);
    out.emplace_back(size, '\0');
    in.read(out.back().data(), size);
  }
  return out;
}

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void measure_time(const Tokenizer& tokenizer, const std::vector<std::string>& documents, int rounds) {
  std::vector<double> seconds;
  uint64_t count = 0, sum = 0;
  for (int round = 0; round < rounds; ++round) {
    count = sum = 0;
    seconds.push_back(seconds_of([&] {
      for (const auto& text : documents) {
        const auto ids = tokenizer.encode(text, /*add_special=*/false);
        count += ids.size();
        for (const auto id : ids) sum = sum * 31 + static_cast<uint64_t>(id);
      }
    }));
  }
  fmt::print("{{\"seconds\": {}, \"ids\": {}, \"checksum\": {}}}\n", seconds, count, sum);
}

// Seconds to tokenize a conversation after each of its turns.
void measure_turns(const std::shared_ptr<const Tokenizer>& tokenizer, const std::vector<std::string>& documents,
                   int rounds) {
  std::vector<double> whole, remembered;
  size_t last_bytes = 0;
  double last_whole = 0, last_remembered = 0;
  for (int round = 0; round < rounds; ++round) {
    PromptEncoder encoder(tokenizer);
    std::string prompt;
    whole.push_back(0);
    remembered.push_back(0);
    for (const auto& text : documents) {
      prompt += text;
      std::vector<int32_t> ids;
      whole.back() += last_whole = seconds_of([&] { ids = tokenizer->encode(prompt, false); });
      remembered.back() += last_remembered = seconds_of([&] {
        if (encoder.encode(prompt, false) != ids) std::abort();
      });
    }
    last_bytes = prompt.size();
  }
  fmt::print("{{\"whole\": {}, \"remembered\": {}, \"last_whole\": {}, \"last_remembered\": {}, \"last_bytes\": {}}}\n",
             whole, remembered, last_whole, last_remembered, last_bytes);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    fmt::print(stderr, "usage: tokenizer_bench time|turns|ids FOLDER DOCUMENTS [ROUNDS]\n");
    return 2;
  }
  const std::string mode = argv[1];
  const auto tokenizer = sluice::tokenizer::load_tokenizer(argv[2]);
  if (!tokenizer.ok()) {
    fmt::print(stderr, "{}\n", tokenizer.error().message);
    return 1;
  }
  const auto documents = read_documents(argv[3]);
  const int rounds = argc > 4 ? std::atoi(argv[4]) : 5;
  if (mode == "time") measure_time(**tokenizer, documents, rounds);
  if (mode == "turns") measure_turns(*tokenizer, documents, rounds);
  if (mode == "ids") {
    for (const auto& text : documents) fmt::print("{}\n", fmt::join((*tokenizer)->encode(text, false), " "));
  }
  return 0;
}
