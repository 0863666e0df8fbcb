#include "cli/serve_options.h"

#include <algorithm>
#include <array>
#include <deque>

#include "gateway/context.h"

namespace sluice::cli {
namespace {

// Who listens on this machine only does not mean to tell the world his metrics.
constexpr std::string_view kMetricsHost = "prometheus-host";

enum class Owner { kServe, kEngine, kGateway };

// The rows of the three tables as one, with the prefixed names.
struct Joined {
  struct Target {
    Owner owner;
    size_t row;
  };
  std::deque<std::string> names;  // what the prefixed string_views point to
  std::vector<internal::OptionSpec> specs;
  std::vector<Target> targets;
  std::vector<RejectedFlag> rejected;

  std::string_view prefixed(std::string_view name) { return names.emplace_back("router-" + std::string(name)); }
};

bool has_prefixed_form(std::string_view gateway_option) {
  return gateway_option != "host" && gateway_option != "port" && gateway_option != "worker-urls";
}

Joined join() {
  Joined joined;
  const auto add = [&](internal::OptionSpec spec, Owner owner, size_t row) {
    joined.specs.push_back(std::move(spec));
    joined.targets.push_back({owner, row});
  };
  const auto& serve = serve_option_table();
  for (size_t row = 0; row < serve.size(); ++row) add(serve.specs()[row], Owner::kServe, row);
  const auto& engine = engine::engine_option_table();
  for (size_t row = 0; row < engine.size(); ++row) add(engine.specs()[row], Owner::kEngine, row);
  const auto& gateway = gateway::gateway_option_table();
  for (size_t row = 0; row < gateway.size(); ++row) {
    internal::OptionSpec spec = gateway.specs()[row];
    if (spec.name == "host" || spec.name == "port") continue;
    if (spec.name == kMetricsHost) {
      spec.value = std::string();
      spec.help =
          "Address of the metrics endpoint; without it that of --host, with --router-disable-arg-fallback 0.0.0.0.";
    }
    if (has_prefixed_form(spec.name)) {
      spec.name = joined.prefixed(spec.name);
      for (auto& alias : spec.aliases) alias = joined.prefixed(alias);
    }
    spec.group = joined.names.emplace_back("Gateway: " + std::string(spec.group));
    add(std::move(spec), Owner::kGateway, row);
  }
  joined.rejected = engine.rejected();
  for (const auto& flag : serve.rejected()) joined.rejected.push_back(flag);
  for (const auto& flag : gateway.rejected()) {
    joined.rejected.push_back({joined.prefixed(flag.name), flag.instead, flag.taken});
  }
  return joined;
}

const Joined& joined() {
  static const Joined tables = join();
  return tables;
}

// Clients speak to the gateway: what the engine's flags say of its certificate is the gateway's, and the workers, which
// only the gateway calls, have none.
Result<void> take_certificate(ServeCommand& command) {
  const engine::EngineOptions& engine = command.engine;
  if (engine.ssl_ca_certs || engine.ssl_keyfile_password) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--{} is of `sluice server`; the gateway of `sluice serve` has no such option",
                             engine.ssl_ca_certs ? "ssl-ca-certs" : "ssl-keyfile-password")};
  }
  if (engine.ssl_certfile.has_value() != engine.ssl_keyfile.has_value()) {
    return Error{ErrorCode::kBadOption, "--ssl-certfile and --ssl-keyfile need each other"};
  }
  if (!engine.ssl_certfile) return {};
  if (command.gateway.tls_cert_path) {
    return Error{ErrorCode::kBadOption, "--ssl-certfile and --router-tls-cert-path are the same; give one of them"};
  }
  command.gateway.tls_cert_path = engine.ssl_certfile;
  command.gateway.tls_key_path = engine.ssl_keyfile;
  return {};
}

// Who may control the workers asks the gateway, which alone calls them.
void take_admin_key(ServeCommand& command) {
  if (const auto& key = command.engine.admin_api_key) {
    command.gateway.control_plane_api_keys.push_back("admin:admin:admin:" + *key);
  }
}

// Of the gateway, or another one for each worker.
bool decided_per_worker(std::string_view name) {
  constexpr std::array<std::string_view, 5> kNames = {"admin-api-key", "dp-size", "host", "port", "threads"};
  return name.starts_with("ssl-") || std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

void append_flag(std::vector<std::string>& flags, const internal::OptionSpec& spec, const OptionValue& value) {
  const std::string flag = fmt::format("--{}", spec.name);
  const auto add = [&](const auto& v) { flags.push_back(fmt::format("{}={}", flag, v)); };
  std::visit(
      [&](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) {
          flags.push_back(flag);
        } else if constexpr (std::is_same_v<T, StringList>) {
          flags.push_back(flag);
          flags.insert(flags.end(), v.begin(), v.end());
        } else if constexpr (std::is_same_v<T, std::optional<int64_t>> || std::is_same_v<T, std::optional<double>> ||
                             std::is_same_v<T, std::optional<std::string>>) {
          if (v) add(*v);
        } else {
          add(v);
        }
      },
      value);
}

// `value` as the alternative that `like` holds; nothing if it is empty or of another kind.
std::optional<OptionValue> converted(const OptionValue& value, const OptionValue& like) {
  return std::visit(
      [&](const auto& v) -> std::optional<OptionValue> {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::optional<int64_t>> || std::is_same_v<T, std::optional<double>> ||
                      std::is_same_v<T, std::optional<std::string>>) {
          return v ? converted(OptionValue(*v), like) : std::nullopt;
        } else if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, StringList>) {
          return std::holds_alternative<T>(like) ? std::optional<OptionValue>(v) : std::nullopt;
        } else {
          if constexpr (std::is_same_v<T, std::string>) {
            if (v.empty()) return std::nullopt;
          }
          if (std::holds_alternative<T>(like)) return OptionValue(v);
          if (std::holds_alternative<std::optional<T>>(like)) return OptionValue(std::optional<T>(v));
          return std::nullopt;
        }
      },
      value);
}

// The engine's value for a gateway option that was not given.
std::optional<OptionValue> engine_value(const engine::EngineOptions& options,
                                        const internal::OptionSpec& gateway_spec) {
  const auto& engine = engine::engine_option_table();
  for (size_t row = 0; row < engine.size(); ++row) {
    if (engine.specs()[row].name != gateway_spec.name) continue;
    auto value = converted(engine.get(options, row), gateway_spec.value);
    // The same level by its other name.
    if (gateway_spec.name == "log-level" && value == OptionValue(std::string("warning"))) value = std::string("warn");
    if (value && internal::validate_option(gateway_spec, *value).ok()) return value;
  }
  return std::nullopt;
}

}  // namespace

const OptionTable<ServeOptions>& serve_option_table() {
  using O = ServeOptions;
  static const OptionTable<O> table(
      {
          {.name = "replicas",
           .field = &O::replicas,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "cli/serve_options",
           .group = "Workers",
           .help =
               "With --enable-dp-attention: workers, each of --tp-size ranks in --dp-size attention groups. Without, "
               "--dp-size says how many there are."},
          {.name = "router-dp-worker-base-port",
           .aliases = {"worker-base-port"},
           .field = &O::router_dp_worker_base_port,
           .value = int64_t{31000},
           .range = {1, 65535},
           .read_by = "cli/serve",
           .group = "Workers",
           .help = "Worker i listens on this port + i, or the next free one."},
          {.name = "worker-host",
           .field = &O::worker_host,
           .value = std::string("127.0.0.1"),
           .read_by = "cli/serve",
           .group = "Workers",
           .help = "Address on which the workers listen and are called."},
          {.name = "worker-startup-timeout",
           .field = &O::worker_startup_timeout,
           .value = int64_t{1800},
           .range = {1, 86400},
           .read_by = "cli/serve",
           .group = "Workers",
           .help = "Seconds in which a worker must be ready after its start."},
          {.name = "worker-answer-timeout",
           .field = &O::worker_answer_timeout,
           .value = int64_t{30},
           .range = {0, 86400},
           .read_by = "cli/serve",
           .group = "Workers",
           .help = "Seconds after which a worker that answers nothing at all any more is killed, and started again as "
                   "one that has ended; 0: never."},
          {.name = "router-disable-worker-restart",
           .field = &O::router_disable_worker_restart,
           .value = false,
           .read_by = "cli/serve",
           .group = "Workers",
           .help = "Leave a worker that has ended where it is; else it is started again after 1 s, doubling to 60 s."},
          {.name = "router-disable-arg-fallback",
           .field = &O::router_disable_arg_fallback,
           .value = false,
           .read_by = "cli/serve_options",
           .group = "Workers",
           .help = "A gateway option without its --router- flag takes its own default, not the engine's value of the "
                   "same name."},
      },
      {
          {"backend",
           "the workers are sluice servers; put a gateway in front of others: sluice gateway --worker-urls.",
           {"sglang"}},
          {"connection-mode", "workers are called over HTTP; leave it out.", {"http"}},
          {"grpc-mode", "workers are called over HTTP; leave it out."},
      });
  return table;
}

OptionView serve_options() { return {&joined().specs, &joined().rejected}; }

Result<ServeCommand> parse_serve(const Arguments& arguments) {
  const auto& serve = serve_option_table();
  const auto& engine = engine::engine_option_table();
  const auto& gateway = gateway::gateway_option_table();
  SLUICE_TRY(const auto given, internal::parse_options(joined().specs, joined().rejected, arguments, true));

  ServeCommand command{serve.defaults(), engine.defaults(), gateway.defaults(), {}};
  std::vector<bool> gateway_given(gateway.size());
  for (const auto& [index, value] : given) {
    const auto target = joined().targets[index];
    switch (target.owner) {
      case Owner::kServe:
        serve.assign(command.serve, target.row, value);
        break;
      case Owner::kEngine:
        engine.assign(command.engine, target.row, value);
        if (!decided_per_worker(engine.specs()[target.row].name)) {
          append_flag(command.worker_flags, engine.specs()[target.row], value);
        }
        break;
      case Owner::kGateway:
        gateway.assign(command.gateway, target.row, value);
        gateway_given[target.row] = true;
        break;
    }
  }
  for (size_t row = 0; row < gateway.size(); ++row) {
    const auto& spec = gateway.specs()[row];
    if (gateway_given[row] || (command.serve.router_disable_arg_fallback && has_prefixed_form(spec.name))) continue;
    // Its engine publishes no KV events, and a model's tokenizer may be in a form that the gateway does not read.
    if (spec.name == "tokenizer-path" || spec.name == "chat-template") continue;
    if (spec.name == kMetricsHost) command.gateway.prometheus_host = command.engine.host;
    if (const auto value = engine_value(command.engine, spec)) gateway.assign(command.gateway, row, *value);
  }
  SLUICE_TRY_VOID(take_certificate(command));
  take_admin_key(command);
  // The gateway sends it to the workers.
  if (const auto key = gateway::check_api_key(command.engine.api_key.value_or("")); !key.ok()) {
    return Error{ErrorCode::kBadOption, "--api-key: " + key.error().message};
  }
  if (command.dp_attention()) {
    command.gateway.dp_aware = true;
  } else if (command.serve.replicas > 1) {
    return Error{
        ErrorCode::kBadOption,
        fmt::format("--replicas {} is of --enable-dp-attention with --dp-size 2 or more; without it --dp-size {} "
                    "says how many workers there are",
                    command.serve.replicas, command.engine.dp_size)};
  }
  if (command.engine.node_rank > 0) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--node-rank {}: the gateway is on node 0; run `sluice server` with "
                             "the engine's flags on the other nodes",
                             command.engine.node_rank)};
  }
  if (command.engine.nnodes > 1 && command.workers() > 1) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--nnodes {} is of one worker, and there are to be {}: start each server by itself, and "
                             "`sluice gateway --worker-urls` before them",
                             command.engine.nnodes, command.workers())};
  }
  return command;
}

}  // namespace sluice::cli
