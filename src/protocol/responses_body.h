// POST /v1/responses for text: its body as one of /v1/chat/completions, and its answers.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/answers.h"

namespace sluice::protocol {

struct ResponsesBody {
  std::string chat;  // the same request for parse_chat_body(); errors of it name the chat's fields
  bool stream = false;
  // Members of the answer that repeat the request.
  std::string echo;  // JSON object
};
Result<ResponsesBody> parse_responses_body(std::string_view text);

struct ResponseState {
  std::string id;
  int64_t created = 0;
  std::string model;
  std::string echo;  // ResponsesBody::echo
  std::string text;
  Finish finish;  // kNone: in progress
  Usage usage;
};
// The object "response" as it stands.
nlohmann::ordered_json response_object(const ResponseState& state);
// {"error": {...}} with the status as code.
std::string responses_error_body(int status, std::string_view message, std::string_view reason = {});

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
