// How one request went.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"

namespace sluice::bench {

struct Outcome {
  std::string error;     // empty: the answer came to its end
  bool cut_off = false;  // by the end of the run, and not by the server

  // Since the start of the run. `due` is when the request was meant to go out, `sent` when its first byte could.
  Duration due{};
  Duration sent{};

  // Since `due`.
  std::optional<Duration> ttft;  // to the first text; none if there was no text
  Duration latency{};            // to the last event
  std::vector<float> itl;        // seconds between tokens, one value per token after the first
  bool streamed = false;         // a whole answer says nothing about single tokens

  int64_t prompt_len = 0;             // as the server counted it, else as it was made
  bool prompt_len_reported = false;   // by the server
  std::optional<int64_t> output_len;  // none if the server did not say
  std::optional<int64_t> cached_tokens;
  std::optional<int64_t> retokenized;  // tokens of `text`, where there is a tokenizer
  std::string answer_id;               // as the server named it
  std::string text;                    // kept only where somebody asks for it

  std::vector<float> chunk_delays;  // seconds from a worker's stamp to the arrival here

  bool ok() const { return error.empty(); }
};

}  // namespace sluice::bench
