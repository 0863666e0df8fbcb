// What the simulated worker takes from a generation request, and the bodies with which it answers. A token is a word
// (or four characters), so that prompts of any endpoint have a length and prefixes without a tokenizer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::testing {

enum class SimApi { kGenerate, kCompletions, kChat };

struct SimRequest {
  // One hash per token. A batch has several; n > 1 is not a batch.
  std::vector<std::vector<uint64_t>> prompts;
  bool batch = false;  // the answer of /generate is a list
  int64_t n = 1;       // samples of each prompt
  int64_t max_tokens = 0;
  bool stream = false;
  bool include_usage = false;
  std::string model;
  std::string rid;
  std::optional<int64_t> dp_rank;
};

// What a token of a text is. By characters, a prompt is the text of all its messages and nothing else, and a rest of
// less than a token does not count.
enum class SimTokens { kWords, kFourCharacters };

// kInvalidArgument with a message for the client. `default_tokens`: generated where the request names no limit.
Result<SimRequest> parse_sim_request(SimApi api, std::string_view body, int64_t default_tokens,
                                     SimTokens tokens = SimTokens::kWords);

// The top-level "stream" of a body and its "stream_options.include_usage", for the canned mode, which reads nothing
// else. Neither if the body is not JSON.
struct StreamWish {
  bool stream = false;
  bool include_usage = false;
};
StreamWish stream_wish(std::string_view body);

// Words are separated by white space. A token id is the word that sim_word() shows for it.
std::vector<uint64_t> sim_tokens(std::string_view text, SimTokens tokens = SimTokens::kWords);
// The text of generated token `id`, without the space that separates words.
std::string sim_word(int64_t id);
// The ids that any simulated worker generates for this prompt: a function of the prompt and the sample number alone.
std::vector<int64_t> sim_output(const std::vector<uint64_t>& prompt, int64_t sample, int64_t count);
uint64_t sim_token(int64_t id);

// How far one sequence of an answer is.
struct SimSequence {
  int64_t index = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  std::vector<int64_t> output;  // all of it, from the start
  int64_t generated = 0;        // what was shown so far
  std::string text;             // of the generated tokens
  std::string id_list;          // the same as JSON without brackets
  bool aborted = false;

  bool done() const { return aborted || generated == static_cast<int64_t>(output.size()); }
  // Moves on to `generated` tokens and returns the text that this adds.
  std::string advance(int64_t generated);
};

struct SimReplyHead {
  SimApi api = SimApi::kGenerate;
  std::string id;
  std::string model;
  int64_t created = 0;
  int64_t dp_rank = -1;  // shown if >= 0
  bool batch = false;    // streamed events of /generate carry "index"
};

// Bodies of answers that are not streamed.
std::string whole_reply(const SimReplyHead& head, const std::vector<SimSequence>& sequences, double e2e_seconds);
// One streamed event's JSON. `delta` is the text that the last advance() added.
std::string first_event(const SimReplyHead& head, const SimSequence& sequence);  // chat only: the role
std::string token_event(const SimReplyHead& head, const SimSequence& sequence, std::string_view delta,
                        double e2e_seconds);
std::string last_event(const SimReplyHead& head, const SimSequence& sequence);  // chat only: finish_reason
std::string usage_event(const SimReplyHead& head, const std::vector<SimSequence>& sequences);  // OpenAI only

// The engines' error bodies.
std::string openai_error(int status, std::string_view message, std::string_view type = "BadRequestError");
std::string generate_error(std::string_view message);

std::string json_quoted(std::string_view text);

}  // namespace sluice::testing
