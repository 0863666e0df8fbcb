#include "gateway/rerank.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "gateway/client_json.h"
#include "protocol/json.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

Error wrong(std::string_view field, std::string_view rule) {
  return {ErrorCode::kInvalidArgument, fmt::format("{} must be {}", field, rule)};
}

}  // namespace

Result<RerankAsk> read_rerank(std::string_view body) {
  SLUICE_TRY(const Json document, parse_client_json(body));
  if (!document.is_object()) return wrong("the body", "a JSON object");
  const auto given = [&](const char* key) -> const Json* {
    const auto at = document.find(key);
    return at == document.end() || at->is_null() ? nullptr : &*at;
  };
  RerankAsk ask;
  for (const char* key : {"top_k", "top_n"}) {
    const Json* top = given(key);
    if (top == nullptr) continue;
    // -1 is how some clients write "all".
    if (top->is_number_integer() && !top->is_number_unsigned() && top->get<int64_t>() == -1) continue;
    if (!top->is_number_unsigned() || top->get<uint64_t>() == 0) return wrong(key, "an integer of at least 1");
    ask.top = std::min(ask.top.value_or(UINT64_MAX), top->get<uint64_t>());
  }
  if (const Json* documents = given("return_documents")) {
    if (!documents->is_boolean()) return wrong("return_documents", "true or false");
    ask.return_documents = documents->get<bool>();
  }
  if (const Json* model = given("model"); model != nullptr && model->is_string()) ask.model = model->get<std::string>();
  if (const Json* rid = given("rid"); rid != nullptr && (rid->is_string() || rid->is_array())) {
    ask.id = protocol::dump(*rid);
  }
  return ask;
}

Result<std::string> rerank_answer(const RerankAsk& ask, std::string_view answer, std::string_view model,
                                  std::string_view id, int64_t created_unix_seconds) {
  const auto no_list = [] { return Error{ErrorCode::kProtocol, "the answer is no list of results"}; };
  auto parsed = parse_client_json(answer);
  if (!parsed.ok()) return no_list();
  Json document = std::move(parsed).value();
  Json usage = nullptr;
  if (document.is_object()) {
    if (document.contains("usage")) usage = std::move(document["usage"]);
    Json results = document.contains("results") ? std::move(document["results"]) : Json();
    document = std::move(results);
  }
  if (!document.is_array()) return no_list();
  for (Json& result : document) {
    if (!result.is_object()) return no_list();
    if (!ask.return_documents) result.erase("document");
  }
  if (ask.top && document.size() > *ask.top)
    document.erase(document.begin() + static_cast<ptrdiff_t>(*ask.top), document.end());
  const Json rebuilt{{"results", std::move(document)},
                     {"model", ask.model ? Json(*ask.model) : Json(model)},
                     {"usage", std::move(usage)},
                     {"object", "rerank"},
                     {"id", ask.id ? Json::parse(*ask.id) : Json(id)},
                     {"created", created_unix_seconds}};
  return protocol::dump(rebuilt);
}

}  // namespace sluice::gateway
