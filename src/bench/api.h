// The endpoints that can be loaded, and the bodies that are sent to them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace sluice::bench {

enum class Api { kGenerate, kCompletions, kChat };

struct Backend {
  std::string_view name;
  Api api = Api::kGenerate;
  uint16_t default_port = 30000;
  bool is_sglang = true;  // answers /flush_cache and /get_server_info
};

// kBadOption for a name that is not in the table.
Result<Backend> backend_named(std::string_view name);
std::string_view path_of(Api api);

// What one request asks for. A chat has messages of alternating roles, the user's first; the others have one text or
// one list of ids.
struct Prompt {
  std::vector<std::string> messages;
  std::vector<int32_t> ids;  // used if not empty
  int64_t output_len = 0;
};

// What is the same in every request of a run.
struct RequestForm {
  Api api = Api::kGenerate;
  std::string model;  // may be empty for kGenerate
  bool stream = true;
  bool ignore_eos = true;
  bool return_logprob = false;
  std::string extra_members;            // members of --extra-request-body: `"a":1,"b":2`, or empty
  std::vector<std::string> overridden;  // their names: not written by us
};

// Takes `extra` (a JSON object, or empty) into the form. kBadOption if it is not an object.
Result<void> add_extra_body(RequestForm& form, std::string_view extra);

// JSON text of a request's body.
std::string request_body(const RequestForm& form, const Prompt& prompt);

}  // namespace sluice::bench
