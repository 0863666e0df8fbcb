#include "engine/stop_regex.h"

#include <algorithm>
#include <cstdint>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "protocol/sampling.h"

namespace sluice::engine {
namespace {

// A millisecond's worth: every token of the request is followed by a search.
constexpr int64_t kSteps = 100'000;

// The library's own limit counts from zero at each place where a match may begin, so steps are counted here: items of
// the pattern that are tried, and bytes gone over, back and forth, between two of them.
struct Steps {
  int64_t left = 0;
  PCRE2_SIZE at = 0;
};

int count_step(pcre2_callout_block* block, void* data) {
  auto& steps = *static_cast<Steps*>(data);
  const PCRE2_SIZE at = block->current_position;
  steps.left -= 1 + static_cast<int64_t>(std::max(at, steps.at) - std::min(at, steps.at));
  steps.at = at;
  return steps.left < 0 ? PCRE2_ERROR_MATCHLIMIT : 0;
}

struct Scratch {
  Scratch() : data(pcre2_match_data_create(1, nullptr)), context(pcre2_match_context_create(nullptr)) {
    SLUICE_CHECK(data != nullptr && context != nullptr, "out of memory");
    pcre2_set_callout(context, count_step, &steps);
    pcre2_set_heap_limit(context, 1024);  // KiB
  }
  ~Scratch() {
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Steps steps;
  pcre2_match_data* data;
  pcre2_match_context* context;
};

}  // namespace

Result<StopRegexes> StopRegexes::compile(const std::vector<std::string>& patterns) {
  StopRegexes out;
  for (const auto& text : patterns) {
    if (text.size() > protocol::kMaxStopRegexBytes) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("stop_regex must have at most {} bytes, got {}",
                                                            protocol::kMaxStopRegexBytes, text.size())};
    }
    int problem = 0;
    PCRE2_SIZE at = 0;
    // Bytes, not characters: the tail may begin in the middle of one.
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_AUTO_CALLOUT,
                                     &problem, &at, nullptr);
    if (code == nullptr) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(problem, message, sizeof message);
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("stop_regex: {} at byte {}", reinterpret_cast<const char*>(message), at)};
    }
    out.patterns_.push_back({text, std::shared_ptr<const pcre2_code>(code, [](const pcre2_code* c) {
                               pcre2_code_free(const_cast<pcre2_code*>(c));
                             })});
  }
  return out;
}

const std::string* StopRegexes::find(std::string_view tail, size_t from) const {
  thread_local Scratch scratch;
  scratch.steps = {.left = kSteps};
  for (const auto& pattern : patterns_) {
    const int found = pcre2_match(pattern.code.get(), reinterpret_cast<PCRE2_SPTR>(tail.data()), tail.size(), from, 0,
                                  scratch.data, scratch.context);
    if (found >= 0) return &pattern.text;
  }
  return nullptr;
}

}  // namespace sluice::engine
