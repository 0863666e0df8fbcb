#include "engine/api/admin_api.h"

#include <charconv>
#include <cstdlib>

#include "base/log.h"
#include "engine/step_trace.h"
#include "models/locate.h"
#include "protocol/errors.h"
#include "protocol/fields.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

constexpr Duration kControlTimeout = std::chrono::seconds(30);  // a step may be under way
constexpr Duration kWriteTimeout = std::chrono::seconds(120);   // a profile of many steps
constexpr Duration kLoadTimeout = std::chrono::minutes(30);     // the largest models take minutes

// The body as an object; an empty one has no members. Absent: the exchange was answered.
net::Task<std::optional<ordered_json>> read_object(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return std::nullopt;
  if (text->empty()) co_return ordered_json::object();
  auto body = protocol::parse_object(*text);
  if (body.ok()) co_return std::move(*body);
  co_await answer_error(call, body.error());
  co_return std::nullopt;
}

net::Response said(std::string_view message) { return json_response({{"message", message}, {"status", "ok"}}); }

// A file's name: what a client gives must not lead elsewhere.
bool is_name(std::string_view text) {
  return text.find('/') == std::string_view::npos && text != "." && text != ".." && text.size() <= 200;
}

Result<StepTraceOptions> trace_options(ApiContext& api, const ordered_json& body) {
  protocol::Fields fields(body);
  const char* variable = std::getenv("SGLANG_TORCH_PROFILER_DIR");
  const std::string folder = fields.text("output_dir", variable ? variable : "/tmp");
  const std::string prefix = fields.text("profile_prefix");
  const std::string id = fields.text("profile_id", std::to_string(api.unix_seconds()));
  StepTraceOptions out;
  out.num_steps = fields.integer("num_steps", {.min = 1, .max = StepTrace::kMaxSteps});
  fields.refuse("start_step", "a profile starts at once", "0");
  if (fields.ok() && (!is_name(prefix) || !is_name(id))) {
    fields.fail("profile_prefix and profile_id are parts of a file's name, without '/', of at most 200 bytes");
  }
  if (!fields.ok()) return fields.error();
  out.path_prefix = fmt::format("{}/{}{}{}", folder, prefix, prefix.empty() ? "" : "-", id);
  return out;
}

net::Response updated_response(ApiContext& api, const Result<void>& result) {
  const bool ok = result.ok();
  const std::string message = ok ? "Succeeded to update model weights." : result.error().message;
  auto response =
      json_response({{"success", ok}, {"message", message}, {"num_paused_requests", api.backend.running().size()}});
  if (!ok) response.status = 400;
  return response;
}

net::Response version_response(const std::string& version) {
  return json_response(
      {{"success", true}, {"message", fmt::format("Weight version updated to {}", version)}, {"new_version", version}});
}

struct Update {
  std::string given;  // as the client wrote it
  std::string file;
  std::string version;  // empty: it stays
  bool abort_all = false;
  bool flush = true;
  bool keep_pause = false;
};

// The ranks empty their caches and load. Nothing is computed in the pause, so caches that were emptied before the load
// stay so, and what forbids emptying them is known before anything has changed.
net::Task<Result<void>> load(ApiCall& call, const Update& update) {
  ApiContext& api = call.api;
  if (update.flush) {
    auto flushed = co_await control_ranks(call, ControlKind::kFlushCache, "", kControlTimeout);
    if (!flushed.ok()) co_return flushed;
  }
  auto loaded = co_await control_ranks(call, ControlKind::kLoadWeights, update.file, kLoadTimeout);
  if (loaded.ok()) {
    api.set_weights(update.given, update.version);
    co_return loaded;
  }
  if (loaded.error().code == ErrorCode::kRefused) co_return loaded;  // by all
  // A rank that failed has its old weights again; so must those that did not.
  const auto old = models::locate_model(api.model_path());
  auto back = Result<void>();
  if (old.ok()) {
    back = co_await control_ranks(call, ControlKind::kLoadWeights, *old, kLoadTimeout);
  } else {
    back = old.error();
  }
  if (back.ok()) co_return loaded;
  // Ranks with different weights compute nothing that anybody wants.
  api.paused = true;
  const std::string what = fmt::format(
      "{}; and the old weights cannot be loaded again: {}. Generation is paused: load weights that all ranks can read, "
      "then POST /continue_generation",
      loaded.error().message, back.error().message);
  SLUICE_LOG(error, "engine/api", "{}", what);
  co_return Error{loaded.error().code, what};
}

// The ranks pause, load and go on. What was running begins anew with the new weights, after the tokens that it has.
net::Task<Result<void>> update(ApiCall& call, const Update& update) {
  ApiContext& api = call.api;
  if (update.abort_all) api.backend.abort_all();
  if (!api.paused) {
    auto paused = co_await control_ranks(call, ControlKind::kPauseRetract, "", kControlTimeout);
    if (!paused.ok()) {
      if (!api.paused) co_await control_ranks(call, ControlKind::kContinue, "", kControlTimeout);
      co_return paused;
    }
  }
  auto loaded = co_await load(call, update);
  if (update.keep_pause) api.paused = true;
  if (api.paused) co_return loaded;  // also of a client that paused meanwhile
  const auto gone_on = co_await control_ranks(call, ControlKind::kContinue, "", kControlTimeout);
  co_return loaded.ok() ? gone_on : loaded;
}

}  // namespace

net::Task<Result<Backend::RankAnswers>> ask_ranks(ApiCall& call, ControlKind kind, std::string text, Duration at_most) {
  struct Shared {
    explicit Shared(net::EventLoop& loop) : event(std::make_shared<LoopEvent>(loop)) {}
    const std::shared_ptr<LoopEvent> event;
    Result<Backend::RankAnswers> result = Backend::RankAnswers{};  // written before the event, read after it
  };
  auto shared = std::make_shared<Shared>(call.exchange.loop());
  call.api.backend.control(kind, std::move(text), at_most, [shared](auto result) {
    shared->result = std::move(result);
    shared->event->notify();
  });
  // The backend calls back within `at_most`, with the ranks that it waited for if they did not answer.
  while (!co_await shared->event->wait()) {
  }
  shared->event->close();
  co_return std::move(shared->result);
}

net::Task<Result<void>> control_ranks(ApiCall& call, ControlKind kind, std::string text, Duration at_most) {
  const auto answers = co_await ask_ranks(call, kind, std::move(text), at_most);
  if (!answers.ok()) co_return answers.error();
  co_return Result<void>();
}

net::Task<> pause_generation(ApiCall& call) {
  const auto body = co_await read_object(call);
  if (!body) co_return;
  protocol::Fields fields(*body);
  const std::string mode = fields.text("mode", "abort");
  if (mode != "abort" && mode != "retract" && mode != "in_place") {
    fields.fail(fmt::format("mode must be \"abort\", \"retract\" or \"in_place\", got \"{}\"", mode.substr(0, 40)));
  }
  if (!fields.ok()) {
    co_await answer_error(call, fields.error());
    co_return;
  }
  const auto kind = mode == "abort"     ? ControlKind::kPauseAbort
                    : mode == "retract" ? ControlKind::kPauseRetract
                                        : ControlKind::kPauseInPlace;
  const bool before = call.api.paused.exchange(true);
  const auto paused = co_await control_ranks(call, kind, "", kControlTimeout);
  if (!paused.ok() && !before) {
    // As before, in the ranks that have paused too.
    call.api.paused = false;
    co_await control_ranks(call, ControlKind::kContinue, "", kControlTimeout);
  }
  if (paused.ok()) {
    co_await answer(call, said("Generation paused successfully."));
  } else {
    co_await answer_error(call, paused.error());
  }
}

net::Task<> continue_generation(ApiCall& call) {
  // Before the ranks are told: a pause that comes while they answer is the later word.
  const bool before = call.api.paused.exchange(false);
  const auto gone_on = co_await control_ranks(call, ControlKind::kContinue, "", kControlTimeout);
  if (!gone_on.ok() && before) call.api.paused = true;
  if (gone_on.ok()) {
    co_await answer(call, said("Generation continued successfully."));
  } else {
    co_await answer_error(call, gone_on.error());
  }
}

// The runtime lets three values of speculation and pipelines be set while it serves, and says of everything else that
// it was not. There is neither here.
net::Task<> set_internal_state(ApiCall& call) {
  const auto body = co_await read_object(call);
  if (!body) co_return;
  protocol::Fields fields(*body);
  const auto* args = fields.find("server_args");
  if (args == nullptr || !args->is_object()) {
    const Error wrong{ErrorCode::kInvalidArgument, "server_args must be an object of options to set"};
    co_await answer_error(call, wrong);
    co_return;
  }
  auto updated = ordered_json::array();
  for (int64_t rank = 0; rank < call.api.settings.dp_size; ++rank) updated.push_back(args->empty());
  co_await answer(call, json_response(updated));
}

net::Task<> set_trace_level(ApiCall& call) {
  const auto text = net::query_value(call.exchange.request().query(), "level").value_or("");
  int64_t level = -1;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), level);
  const bool whole = problem == std::errc() && end == text.data() + text.size();
  if (!whole || level < Tracer::kOff || level > Tracer::kSamples) {
    co_await answer(call, error_response(400, "level must be a whole number from 0 to 3, in the query: ?level=1"));
  } else if (!call.api.tracer.enabled()) {
    co_await answer(call,
                    error_response(400, "the server was started without --enable-trace: there is nothing to set"));
  } else {
    call.api.tracer.set_level(level);
    co_await answer(call, net::Response::text(200, "success"));
  }
}

net::Task<> start_profile(ApiCall& call) {
  const auto body = co_await read_object(call);
  if (!body) co_return;
  const auto options = trace_options(call.api, *body);
  if (!options.ok()) {
    co_await answer_error(call, options.error());
    co_return;
  }
  const auto started = co_await control_ranks(call, ControlKind::kStartProfile, to_json(*options), kControlTimeout);
  if (started.ok()) {
    co_await answer(call, net::Response::text(200, fmt::format("Start profiling, into {}-DP-<rank>.trace.json\n",
                                                               options->path_prefix)));
  } else {
    co_await answer(call, error_response(400, started.error().message));
  }
}

net::Task<> stop_profile(ApiCall& call) {
  const auto stopped = co_await control_ranks(call, ControlKind::kStopProfile, "", kWriteTimeout);
  if (stopped.ok()) {
    co_await answer(call, net::Response::text(200, "Stop profiling. The files are written.\n"));
  } else {
    co_await answer(call, error_response(400, stopped.error().message));
  }
}

net::Task<> update_weights_from_disk(ApiCall& call) {
  const auto body = co_await read_object(call);
  if (!body) co_return;
  protocol::Fields fields(*body);
  Update wanted{.given = fields.text("model_path"),
                .version = fields.text("weight_version"),
                .abort_all = fields.boolean("abort_all_requests", false),
                .flush = fields.boolean("flush_cache", true),
                .keep_pause = fields.boolean("keep_pause", false)};
  fields.refuse("load_format", "the format is found out from the files", "\"auto\"");
  fields.refuse("is_async", "the answer comes when the weights are loaded", "false");
  if (fields.ok() && wanted.given.empty()) fields.fail("model_path is missing: a folder, a .gguf file or a hub name");
  if (!fields.ok()) {
    co_await answer_error(call, fields.error());
    co_return;
  }
  auto file = models::locate_model(wanted.given);
  if (!file.ok()) {
    co_await answer(call, updated_response(call.api, file.error()));
    co_return;
  }
  wanted.file = std::move(*file);
  if (call.api.updating.exchange(true)) {
    const Error busy{ErrorCode::kUnavailable, "other weights are being loaded"};
    co_await answer(call, updated_response(call.api, busy));
    co_return;
  }
  const auto updated = co_await update(call, wanted);
  call.api.updating = false;
  co_await answer(call, updated_response(call.api, updated));
}

net::Task<> update_weight_version(ApiCall& call) {
  const auto body = co_await read_object(call);
  if (!body) co_return;
  protocol::Fields fields(*body);
  const std::string version = fields.text("new_version");
  if (fields.boolean("abort_all_requests", false)) call.api.backend.abort_all();
  if (fields.ok() && version.empty()) fields.fail("new_version is missing");
  if (!fields.ok()) {
    co_await answer_error(call, fields.error());
    co_return;
  }
  call.api.set_weight_version(version);
  co_await answer(call, version_response(version));
}

}  // namespace sluice::engine
