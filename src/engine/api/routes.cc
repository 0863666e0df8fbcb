#include "engine/api/routes.h"

#include "engine/api/admin_api.h"
#include "engine/api/control_api.h"
#include "engine/api/embedding_api.h"
#include "engine/api/experts_api.h"
#include "engine/api/info_api.h"
#include "engine/api/native_api.h"
#include "engine/api/openai_api.h"
#include "engine/api/parse_api.h"
#include "engine/api/responses_api.h"
#include "engine/api/text_api.h"
#include "engine/api/weights_api.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kNoCollector = "has nothing to freeze here: there is no garbage collector";
constexpr std::string_view kTestHook = "is a hook of the runtime's own tests";
constexpr std::string_view kNoRequestLog = "has nothing to set here: requests are not logged; see --log-level";
constexpr std::string_view kNoLending = "is not built: memory of a CPU is not lent; end the server instead";
constexpr std::string_view kFromDisk = "takes tensors from processes of torch; use /update_weights_from_disk";
constexpr std::string_view kOut = "is outside the scope of this engine";

const Route kRoutes[] = {
    {.path = "/generate", .methods = "POST PUT", .serve = generate, .traced = true},
    {.path = "/v1/completions", .methods = "POST", .serve = completions, .json_only = true, .traced = true},
    {.path = "/v1/chat/completions", .methods = "POST", .serve = chat_completions, .json_only = true, .traced = true},
    {.path = "/v1/responses", .methods = "POST", .serve = responses, .json_only = true, .traced = true},
    {.path = "/v1/responses/*", .methods = "GET POST DELETE", .serve = stored_response},
    {.path = "/v1/embeddings", .methods = "POST", .serve = embeddings, .json_only = true, .traced = true},
    {.path = "/encode", .methods = "POST PUT", .serve = encode, .traced = true},
    {.path = "/v1/score", .methods = "POST", .serve = score, .json_only = true, .traced = true},
    {.path = "/classify", .methods = "POST PUT", .serve = classify_native, .traced = true},
    {.path = "/v1/classify", .methods = "POST", .serve = classify, .json_only = true, .traced = true},
    {.path = "/v1/rerank", .methods = "POST PUT", .serve = rerank, .json_only = true, .traced = true},
    {.path = "/v1/models", .methods = "GET", .serve = list_models},
    {.path = "/v1/models/*", .methods = "GET", .serve = find_model},
    {.path = "/tokenize", .methods = "POST", .serve = tokenize, .json_only = true},
    {.path = "/v1/tokenize", .methods = "POST", .serve = tokenize, .json_only = true},
    {.path = "/detokenize", .methods = "POST", .serve = detokenize, .json_only = true},
    {.path = "/v1/detokenize", .methods = "POST", .serve = detokenize, .json_only = true},
    {.path = "/parse_function_call", .methods = "POST", .serve = parse_function_call},
    {.path = "/separate_reasoning", .methods = "POST", .serve = separate_reasoning},

    {.path = "/health", .methods = "GET", .access = Access::kOpen, .serve = health},
    {.path = "/health_generate", .methods = "GET", .access = Access::kOpen, .serve = health_generate},
    {.path = "/ping", .methods = "GET", .serve = ping},
    {.path = "/metrics", .methods = "GET", .access = Access::kOpen, .serve = metrics_page},
    {.path = "/metrics/", .methods = "GET", .access = Access::kOpen, .serve = metrics_page},
    {.path = "/model_info", .methods = "GET", .serve = model_info},
    {.path = "/get_model_info", .methods = "GET", .serve = model_info},
    {.path = "/server_info", .methods = "GET", .serve = server_info},
    {.path = "/get_server_info", .methods = "GET", .serve = server_info},
    {.path = "/get_load", .methods = "GET", .serve = get_load},
    {.path = "/v1/loads", .methods = "GET", .serve = loads},

    {.path = "/flush_cache", .methods = "GET POST", .access = Access::kAdmin, .serve = flush_cache},
    {.path = "/abort_request", .methods = "POST", .access = Access::kAdmin, .serve = abort_request},
    {.path = "/pause_generation", .methods = "POST", .access = Access::kAdmin, .serve = pause_generation},
    {.path = "/continue_generation", .methods = "POST", .access = Access::kAdmin, .serve = continue_generation},
    {.path = "/start_profile", .methods = "GET POST", .access = Access::kAdmin, .serve = start_profile},
    {.path = "/stop_profile", .methods = "GET POST", .access = Access::kAdmin, .serve = stop_profile},
    {.path = "/update_weights_from_disk",
     .methods = "POST",
     .access = Access::kAdmin,
     .serve = update_weights_from_disk},
    {.path = "/update_weight_version", .methods = "POST", .access = Access::kAdmin, .serve = update_weight_version},
    {.path = "/start_expert_distribution_record",
     .methods = "GET POST",
     .access = Access::kAdmin,
     .serve = start_expert_record},
    {.path = "/stop_expert_distribution_record",
     .methods = "GET POST",
     .access = Access::kAdmin,
     .serve = stop_expert_record},
    {.path = "/dump_expert_distribution_record",
     .methods = "GET POST",
     .access = Access::kAdmin,
     .serve = dump_expert_record},

    {.path = "/set_internal_state", .methods = "POST PUT", .access = Access::kAdmin, .serve = set_internal_state},
    {.path = "/set_trace_level", .methods = "GET POST", .access = Access::kAdmin, .serve = set_trace_level},
    {.path = "/freeze_gc", .methods = "GET POST", .access = Access::kAdmin, .why = kNoCollector},
    {.path = "/slow_down", .methods = "GET POST", .access = Access::kAdmin, .why = kTestHook},
    {.path = "/configure_logging", .methods = "GET POST", .access = Access::kAdmin, .why = kNoRequestLog},
    {.path = "/release_memory_occupation", .methods = "GET POST", .access = Access::kAdmin, .why = kNoLending},
    {.path = "/resume_memory_occupation", .methods = "GET POST", .access = Access::kAdmin, .why = kNoLending},
    {.path = "/get_weights_by_name", .methods = "GET POST", .access = Access::kAdmin, .serve = get_weights_by_name},
    {.path = "/update_weights_from_tensor", .methods = "POST", .access = Access::kAdmin, .why = kFromDisk},
    {.path = "/update_weights_from_distributed", .methods = "POST", .access = Access::kAdmin, .why = kFromDisk},
    {.path = "/update_weights_from_ipc", .methods = "POST", .access = Access::kAdmin, .why = kFromDisk},
    {.path = "/init_weights_update_group", .methods = "POST", .access = Access::kAdmin, .why = kFromDisk},
    {.path = "/destroy_weights_update_group", .methods = "POST", .access = Access::kAdmin, .why = kFromDisk},

    {.path = "/open_session", .methods = "GET POST", .why = kOut},
    {.path = "/close_session", .methods = "GET POST", .why = kOut},
    {.path = "/load_lora_adapter", .methods = "POST", .access = Access::kAdmin, .why = kOut},
    {.path = "/unload_lora_adapter", .methods = "POST", .access = Access::kAdmin, .why = kOut},
    {.path = "/v1/audio/transcriptions", .methods = "POST", .why = kOut},
    {.path = "/v1/messages", .methods = "POST", .why = kOut},
    {.path = "/v1/messages/count_tokens", .methods = "POST", .why = kOut},
    {.path = "/", .methods = "GET", .why = kOut},
    {.path = "/api/chat", .methods = "POST", .why = kOut},
    {.path = "/api/generate", .methods = "POST", .why = kOut},
    {.path = "/api/tags", .methods = "GET", .why = kOut},
    {.path = "/api/show", .methods = "POST", .why = kOut},
    {.path = "/invocations", .methods = "POST", .why = kOut},
    {.path = "/vertex_generate", .methods = "POST", .why = kOut},
    {.path = "/v1/realtime", .methods = "GET", .why = kOut},
};

}  // namespace

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    auto prefix = route.path;
    if (prefix.ends_with('*')) {
      prefix.remove_suffix(1);
      if (path.starts_with(prefix) && path.size() > prefix.size()) return &route;
    } else if (path == prefix) {
      return &route;
    }
  }
  return nullptr;
}

bool allows(const Route& route, std::string_view method) {
  auto methods = route.methods;
  while (!methods.empty()) {
    const auto one = methods.substr(0, methods.find(' '));
    if (one == method) return true;
    methods.remove_prefix(std::min(methods.size(), one.size() + 1));
  }
  return false;
}

}  // namespace sluice::engine
