// Rerank requests: the one answer that the gateway rebuilds, since engines answer with a bare list of scores and
// clients expect the object of the SGLang gateway.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace sluice::gateway {

// What a request says about its answer.
struct RerankAsk {
  std::optional<std::string> model;
  std::optional<std::string> id;  // JSON: its "rid", a string or a list
  std::optional<uint64_t> top;    // results at most: the lesser of top_k and top_n
  bool return_documents = true;
};
// kInvalidArgument names the field and what it may be. `body` is a JSON object, as scan_body() has seen.
Result<RerankAsk> read_rerank(std::string_view body);

// {"results":[...],"model","usage","object":"rerank","id","created"} out of a worker's answer: a list of results, or an
// object that has them under "results". Their order is the worker's. `model` and `id` are for requests that name none.
// kProtocol if the answer is neither.
Result<std::string> rerank_answer(const RerankAsk& ask, std::string_view answer, std::string_view model,
                                  std::string_view id, int64_t created_unix_seconds);

}  // namespace sluice::gateway
