// What a run sends: made from options and a seed alone, so that two runs send the same.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "base/rng.h"
#include "bench/api.h"
#include "bench/options.h"
#include "bench/text_source.h"

namespace sluice::bench {

// One request, or a conversation of several that follow each other.
struct Item {
  std::vector<std::string> turns;  // texts of the user; one, unless it is a conversation
  std::vector<int32_t> ids;        // sent instead of the text, if not empty
  int64_t prompt_len = 0;          // tokens of the first turn as far as known here; 0 = not counted
  int64_t output_len = 0;          // of every answer
  std::string routing_key;         // sent as a header, if not empty
};

// kNotFound and kProtocol name the file and what is wrong with it; kBadOption names the option.
Result<std::vector<Item>> make_dataset(const BenchOptions& options, const TextSource& texts, Rng& rng);

// A length drawn from [max(1, ratio * full), full].
int64_t draw_length(Rng& rng, int64_t full, double ratio);

}  // namespace sluice::bench
