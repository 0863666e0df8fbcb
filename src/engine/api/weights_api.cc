#include "engine/api/weights_api.h"

#include <utility>

#include "engine/api/admin_api.h"
#include "engine/weight_query.h"
#include "protocol/fields.h"

namespace sluice::engine {
namespace {

constexpr Duration kReadTimeout = std::chrono::seconds(60);  // a step may be under way, and files slow
constexpr size_t kMaxName = 1024;

Result<WeightQuery> parse_query(std::string_view text) {
  SLUICE_TRY(const auto body, protocol::parse_object(text));
  protocol::Fields fields(body);
  WeightQuery out{.name = fields.text("name"),
                  .rows = fields.integer("truncate_size", 100, {.min = 1, .max = INT32_MAX})};
  if (fields.ok() && (out.name.empty() || out.name.size() > kMaxName)) {
    fields.fail(fmt::format("name must be a tensor's name in the checkpoint, of at most {} bytes", kMaxName));
  }
  if (!fields.ok()) return fields.error();
  return out;
}

}  // namespace

net::Task<> get_weights_by_name(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto query = parse_query(*text);
  if (!query.ok()) {
    co_await answer_error(call, query.error());
    co_return;
  }
  const auto read = co_await ask_ranks(call, ControlKind::kReadWeight, to_json(*query), kReadTimeout);
  if (!read.ok()) {
    // What ranks refuse comes as kUnavailable, and is the request's fault: no such tensor. Silence is not.
    Error error = read.error();
    error.message = "Get parameter by name failed: " + error.message;
    if (error.code == ErrorCode::kUnavailable) error.code = ErrorCode::kInvalidArgument;
    co_await answer_error(call, error);
    co_return;
  }
  if (std::cmp_less(read->size(), call.api.settings.dp_size)) {
    co_await answer_error(call, Error{ErrorCode::kUnavailable, "not all ranks are ready"});
    co_return;
  }
  // Each rank's answer is JSON already.
  std::vector<std::string> answers;
  for (const auto& [rank, values] : *read) answers.push_back(values);
  std::string body = fmt::format("{}", fmt::join(answers, ","));
  if (call.api.settings.dp_size > 1) body = "[" + body + "]";
  co_await answer(call, net::Response::json(200, std::move(body)));
}

}  // namespace sluice::engine
