// What the bodies of the three generating endpoints have in common on their way to a GenerationPlan. Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/api/context.h"
#include "engine/api/generation.h"
#include "net/http.h"
#include "protocol/generate_body.h"
#include "protocol/sampling.h"

namespace sluice::engine {

// The rank that the client wants: header X-Data-Parallel-Rank, which must be an integer, else what the body says.
// Whether there is such a rank is the backend's question.
Result<std::optional<int64_t>> wanted_rank(const net::Headers& headers, std::optional<int64_t> in_body);
// What --schedule-policy routing-key goes by: the body's field, else header X-SMG-Routing-Key.
std::string routing_key(const net::Headers& headers, const std::string& in_body);

// Values of the labels that the server allows, of the body's custom_labels and the header's, which gives way; empty
// where there are none. kInvalidArgument: the body has others, or the header is no object of strings.
Result<std::vector<std::string>> wanted_labels(const ApiContext& api, const net::Headers& headers,
                                               const protocol::Labels& in_body);

// The ids of a prompt, tokenized where it is text.
std::vector<int32_t> prompt_ids(ApiContext& api, protocol::Prompt prompt);

// Holds a prompt and the tokens asked for to the context length; cuts the prompt with --allow-auto-truncate. Returns
// the tokens to generate at most: `asked`, or `otherwise` (absent: up to the end of the context).
Result<int64_t> fit_context(const ApiContext& api, const LengthLimits& limits, std::vector<int32_t>& ids,
                            std::optional<int64_t> asked, std::optional<int64_t> otherwise);

// Some samples of one prompt: sampling parameters, stop strings, the rest of `request` as it is.
struct PromptPlan {
  GenerateRequest request;  // without rid and sampling
  SampleFormat format;
};
Result<PromptPlan> plan_prompt(const ApiContext& api, const LengthLimits& limits, std::vector<int32_t> ids,
                               const protocol::Sampling& sampling, std::optional<int64_t> default_length, bool stream);

// Asks for what `insides` says, of `samples` samples of such a prompt. kInvalidArgument where the server or the model
// does not give that, or where it would be too much.
Result<void> want_insides(const ApiContext& api, const protocol::Insides& insides, size_t samples, PromptPlan& prompt);

// kInvalidArgument where the model has no head that says what comes next.
Result<void> check_generates(const ApiContext& api);

// Adds `n` samples. Their rids are `rid` itself, or <rid>_<first index>, ... where `numbered`. kInvalidArgument where
// the prompts of all of them would be too many tokens.
Result<void> add_samples(GenerationPlan& plan, PromptPlan prompt, size_t n, const std::string& rid, bool numbered);
// kInvalidArgument when a request asks for too many.
Result<void> check_sample_count(size_t prompts, int64_t n);

}  // namespace sluice::engine
