// POST /v1/responses for text: its body as one of /v1/chat/completions, and its answers.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/answers.h"

namespace sluice::protocol {

inline constexpr std::string_view kResponsePrefix = "resp_";  // of the ids of responses
inline constexpr size_t kMaxResponseIdBytes = 256;

struct ResponsesBody {
  // The parts of the same request for parse_chat_body(), whose errors name the chat's fields: `messages` are members of
  // a JSON list, without its brackets, as `instructions` is (empty: none); `chat` is an object with everything else.
  std::string instructions;
  std::string messages;
  std::string chat;
  std::string previous;  // id of the response that this goes on from; empty: none
  bool stream = false;
  bool store = true;
  bool background = false;
  // Members of the answer that repeat the request.
  std::string echo;  // JSON object
};
Result<ResponsesBody> parse_responses_body(std::string_view text);
// The whole request for parse_chat_body(). `before`: the messages of the conversation that is gone on with, in the form
// of ResponsesBody::messages. The instructions of this request come first; those of earlier ones are not in it.
std::string chat_of(const ResponsesBody& body, std::string_view before);
// The messages up to the answer, and with it: what a response that goes on from this one begins with.
std::string joined_messages(std::string_view before, std::string_view messages);
std::string with_answer(std::string_view messages, std::string_view text);

enum class ResponseStatus { kQueued, kInProgress, kCompleted, kIncomplete, kCancelled, kFailed };
std::string_view to_string(ResponseStatus status);
inline bool has_ended(ResponseStatus status) {
  return status != ResponseStatus::kQueued && status != ResponseStatus::kInProgress;
}
// Of a sample that ended so.
ResponseStatus ended_status(const Finish& finish);

struct ResponseState {
  std::string id;  // with its prefix
  int64_t created = 0;
  std::string model;
  std::string echo;  // ResponsesBody::echo
  ResponseStatus status = ResponseStatus::kInProgress;
  std::string text;
  std::optional<Usage> usage;  // once it has ended
  bool stored = false;         // it can be asked for again
  // kFailed: what a client would have got in place of an answer.
  int failed_with = 0;  // HTTP status
  std::string failure;
};
// The object "response" as it stands.
nlohmann::ordered_json response_object(const ResponseState& state);
// {"error": {...}} with the status as code. `param`: the field that is to blame, where it is known.
std::string responses_error_body(int status, std::string_view message, std::string_view reason = {},
                                 std::string_view param = {});

// The events of a stream, in order, each as the data of one.
class ResponseEvents {
 public:
  explicit ResponseEvents(const ResponseState& state) : state_(state) {}

  // What comes before the text, as four events; a piece of text; what follows it, as four.
  std::vector<std::string> begin();
  std::string delta(std::string_view text);
  std::vector<std::string> end();

 private:
  nlohmann::ordered_json event(std::string_view type);
  nlohmann::ordered_json item(std::string_view status, bool with_text) const;
  nlohmann::ordered_json part(bool with_text) const;

  const ResponseState& state_;
  int64_t number_ = 0;
};

}  // namespace sluice::protocol
