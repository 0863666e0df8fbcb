#include "engine/rank.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/machine.h"
#include "base/ready_pipe.h"
#include "base/rng.h"
#include "engine/emulated_link.h"
#include "engine/expert_options.h"
#include "engine/grammar/desk.h"
#include "engine/grammar/process.h"
#include "engine/group_runner.h"
#include "engine/layout_options.h"
#include "engine/memory_plan.h"
#include "engine/nodes/identity.h"
#include "engine/rank_loop.h"
#include "engine/scheduler_setup.h"
#include "engine/step_device.h"
#include "engine/tokenizer_files.h"
#include "engine/weight_query.h"
#include "parallel/gloo.h"
#include "parallel/shm.h"
#include "parallel/stay_alive.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/rank";
constexpr Duration kGrammarTimeout = std::chrono::seconds(10);  // for compiling one
constexpr const char* kSpecVariable = "SLUICE_RANK_SPEC_FD";
constexpr const char* kBoardVariable = "SLUICE_LOAD_BOARD_FD";
constexpr const char* kGroupVariable = "SLUICE_GROUP_FD";
// The ranks of an instance load side by side; one that has not said a word for so long has hung.
constexpr Duration kJoinLimit = std::chrono::minutes(5);

// A descriptor that is closed with the scope.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

Result<std::string> read_all(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) return Error{ErrorCode::kInternal, std::strerror(errno)};
  std::string text(static_cast<size_t>(status.st_size), '\0');
  if (pread(fd, text.data(), text.size(), 0) != status.st_size) {
    return Error{ErrorCode::kInternal, "the spec of the rank cannot be read"};
  }
  return text;
}

log::Options log_options(const EngineOptions& options) {
  return {.level = options.log_level == "warning" ? "warn" : options.log_level, .json = options.log_json};
}

class RankProcess {
 public:
  RankProcess(RankSpec spec, std::optional<LoadBoard> board, int weights_fd, int group_fd, RankLink link)
      : spec_(std::move(spec)),
        board_(std::move(board)),
        weights_fd_(weights_fd),
        group_fd_(group_fd),
        link_(std::move(link)) {}

  int run() {
    auto ended = serve_or_throw();
    if (ended.ok()) return 0;
    SLUICE_LOG(error, kComponent, "rank {}: {}", spec_.process, ended.error().message);
    link_.send(RankFailed{ended.error().message});
    return 1;
  }

 private:
  // Libraries below may throw (no memory, most of all); the front is told all the same.
  Result<void> serve_or_throw() {
    try {
      return serve();
    } catch (const std::exception& e) {
      return Error{ErrorCode::kInternal, e.what()};
    }
  }

  Result<void> serve() {
    const EngineOptions& options = spec_.options;
    const int64_t host_ranks = host_workers() * ranks_per_host(options);
    SLUICE_TRY(auto tokenizer, load_tokenizer(spec_.tokenizer_file));
    SLUICE_TRY_VOID(join_group());
    program_bytes_ = resident_bytes();
    auto loading = stay_alive_loading();
    const TimePoint load_begun = real_clock().now();
    SLUICE_TRY(auto runner, load(host_ranks));
    load_seconds_ = seconds(real_clock().now() - load_begun);
    const models::ModelInfo& model = runner->info();
    const bool keeps_experts = options.enable_return_routed_experts && runner->last_routing().layers > 0;
    models::ModelInfo kept = model;
    if (keeps_experts) {
      kept.kv_bytes_per_token += static_cast<size_t>(RoutedExperts::bytes_per_token(runner->last_routing()));
    }
    SLUICE_TRY(const MemoryPlan memory, plan(kept, host_ranks));
    SLUICE_TRY_VOID(runner->allocate_kv({.slots = memory.max_total_tokens + options.page_size,
                                         .table_rows = static_cast<int32_t>(memory.max_running_requests),
                                         .table_width = static_cast<int32_t>(memory.max_req_len),
                                         .kept_states = static_cast<int32_t>(memory.kept_states)}));
    loading.reset();
    const auto load_weights = [&](const std::string& path) -> Result<void> {
      if (weights_fd_ >= 0 && host_workers() > 1) {
        return Error{ErrorCode::kUnavailable, "the weights are shared with other servers of this host (sluice serve)"};
      }
      const OutsideSteps outside;
      const auto alive = stay_alive_loading();
      return runner->reload(path, {});
    };
    const RecordExperts record_experts = [&](std::string_view command) { return runner->record_experts(command); };
    GroupRunner* group = nullptr;
    if (world_) group = static_cast<GroupRunner*>(runner.get());
    if (group != nullptr) group->set_crowded(crowded_);
    if (group != nullptr && keeps_experts) group->gather_routing();
    if (group != nullptr && !groups_.layout.leads()) {
      report_ready(model, memory, 0);
      return run_follower_loop(link_, *group, spec_.process, load_weights, record_experts);
    }
    SLUICE_TRY(const auto events, open_events());
    const auto device = step_device(model, group != nullptr);
    SLUICE_TRY(const SchedulerTuning tuning, scheduler_tuning_from_environment());
    SLUICE_TRY(const ServerEnvironment environment, server_environment());
    const uint64_t seed = options.random_seed ? static_cast<uint64_t>(*options.random_seed) : random_seed();
    Scheduler scheduler(
        scheduler_options(options, memory, model, tuning, environment,
                          {.joint_steps = group != nullptr,
                           .keep_routed_experts = keeps_experts,
                           .publish_events = events != nullptr,
                           .seed = seed + static_cast<uint64_t>(spec_.dp_rank)}),
        *runner, [tokenizer](int32_t id) { return tokenizer->token_bytes(id); }, real_clock(), device.get());
    const auto grammars = grammar_desk(model, tokenizer);
    report_states(model, memory);
    report_ready(model, memory, scheduler.max_req_input_len());
    return run_rank_loop(
        {.dp_rank = spec_.dp_rank,
         .process = spec_.process,
         .decode_log_interval = options.decode_log_interval,
         .group = group,
         .ends_early = group == nullptr && device == nullptr ? runner.get() : nullptr,
         .prefill_delayer = {.enabled = options.enable_prefill_delayer,
                             .max_passes = options.prefill_delayer_max_delay_passes,
                             .token_usage_low_watermark = options.prefill_delayer_token_usage_low_watermark},
         .load_weights = load_weights,
         .record_experts = record_experts,
         .read_weight = [&](std::string_view query) { return answer_weight_query(*runner, query); },
         .grammars = grammars.get()},
        link_, scheduler, board_ ? &*board_ : nullptr, events.get());
  }

  // Null where nobody has asked for them.
  Result<std::unique_ptr<KvPublisher>> open_events() const {
    if (!spec_.options.kv_events_config) return std::unique_ptr<KvPublisher>();
    SLUICE_TRY(const auto config, parse_kv_events_config(*spec_.options.kv_events_config));
    if (!config.enabled) return std::unique_ptr<KvPublisher>();
    SLUICE_TRY(auto events, KvPublisher::open(config, spec_.dp_rank, real_clock()));
    SLUICE_LOG(info, kComponent, "rank {}: publishes KV events at {}", spec_.dp_rank, events->endpoint());
    return events;
  }

  // A thread for the steps, so that the next one is planned meanwhile; null: they are computed one after another. Which
  // it is and why is logged.
  std::unique_ptr<StepDevice> step_device(const models::ModelInfo& model, bool in_group) const {
    const std::string_view why_not =
        spec_.options.disable_overlap_schedule ? "--disable-overlap-schedule"
        : spec_.options.device == "cpu"        ? "the processor that plans computes the steps, too (--device cpu)"
        : in_group                             ? "the ranks of an instance agree on each step when it begins"
        : model.state_bytes_per_sequence > 0   ? "the model's states are copied between steps"
                                               : "";
    if (why_not.empty()) {
      SLUICE_LOG(info, kComponent, "rank {}: a step is planned while the one before it is computed", spec_.process);
      return std::make_unique<ThreadDevice>();
    }
    SLUICE_LOG(info, kComponent, "rank {}: a step is planned once the one before it is over: {}", spec_.process,
               why_not);
    return nullptr;
  }

  // Null where there are no grammars; the front refuses them then.
  std::unique_ptr<GrammarDesk> grammar_desk(const models::ModelInfo& model,
                                            const std::shared_ptr<const tokenizer::Tokenizer>& tokenizer) const {
    const std::string backend = grammar_backend(spec_.options);
    if (find_grammar_backend(backend)->make == nullptr) return nullptr;
    return std::make_unique<GrammarDesk>(grammar_compiler({.backend = backend,
                                                           .tokenizer_file = spec_.tokenizer_file,
                                                           .vocab_size = model.vocab_size,
                                                           .stop_ids = model.eos_token_ids},
                                                          tokenizer, kGrammarTimeout));
  }

  // Of an instance of several ranks.
  Result<void> join_group() {
    const bool has_hosts = !spec_.rendezvous.empty();
    if (group_fd_ < 0 && !has_hosts) return {};
    const parallel::Layout layout = layout_of(spec_.options, spec_.tp_rank);
    const int rank = static_cast<int>(layout.tp_rank), size = static_cast<int>(layout.tp_size);
    const parallel::GroupOptions options{.silence_limit = from_seconds(spec_.options.watchdog_timeout),
                                         .join_limit = kJoinLimit};
    if (!has_hosts || group_fd_ >= 0) {
      SLUICE_TRY(segment_, parallel::ShmSegment::open(group_fd_));
    }
    if (has_hosts) {
      SLUICE_TRY(world_, parallel::join_gloo({.who = {.rank = rank, .size = size, .host = spec_.address},
                                              .rendezvous = spec_.rendezvous,
                                              .address = spec_.address,
                                              .shown_in = segment_},
                                             options));
    } else {
      Pulse::publish_at(segment_->pulse(rank));
      SLUICE_TRY(world_, parallel::join_shm(segment_, rank, size, options));
    }
    SLUICE_TRY(auto link, emulated_link(layout, spec_.options.nnodes));
    if (link) {
      SLUICE_LOG(warn, kComponent,
                 "rank {}: what comes from other {} takes {} ms more, and has {} MB/s, as the environment says", rank,
                 has_hosts ? "hosts" : "ranks", seconds(link->latency) * 1e3,
                 link->bytes_per_second == 0 ? "any" : fmt::format("{}", link->bytes_per_second / 1e6));
      world_ = parallel::add_latency(std::move(world_), std::move(*link));
    }
    SLUICE_TRY(groups_, parallel::make_groups(*world_, layout));
    if (overlaps(spec_.options)) {
      SLUICE_TRY(overlap_, parallel::Overlap::make(*world_, layout, split_threshold_of(spec_.options) ? 2 : 1));
    }
    return {};
  }

  // All ranks of an instance have the smallest pool of them: what a leader plans must fit on each rank of its group.
  // And all are crowded where one is, as calls must be the same on all.
  Result<MemoryPlan> plan(const models::ModelInfo& model, int64_t host_ranks) {
    EngineOptions options = spec_.options;
    const bool has_followers = world_ && groups_.layout.leads() && groups_.layout.attention_tp_size() > 1;
    const MemoryFacts facts{.limit_bytes = memory_limit_bytes(),
                            .host_ranks = host_ranks,
                            .shared_weights = weights_fd_ >= 0,
                            .program_bytes = program_bytes_,
                            .slot_tables = has_followers ? 2 : 1};
    SLUICE_TRY(MemoryPlan memory, plan_memory(options, model, facts));
    if (!world_) return memory;
    int64_t most[] = {-memory.max_total_tokens, -memory.max_running_requests, -memory.kept_states,
                      host_ranks > usable_cores() ? 1 : 0};
    SLUICE_TRY_VOID(world_->all_reduce({}, parallel::Element::kI64, most, most, 4, parallel::Reduction::kMax));
    crowded_ = most[3] != 0;
    options.max_total_tokens = -most[0];
    options.max_running_requests = -most[1];
    SLUICE_TRY(memory, plan_memory(options, model, facts));
    memory.kept_states = std::min(memory.kept_states, -most[2]);
    return memory;
  }

  Result<std::unique_ptr<models::Runner>> load(int64_t host_ranks) {
    const EngineOptions& options = spec_.options;
    const StepLimits limits = plan_steps(options);
    const int64_t threads = options.threads.value_or(std::max<int64_t>(1, usable_cores() / host_ranks));
    SLUICE_TRY(const auto recorder, expert_recorder_of(options));
    SLUICE_TRY(auto runner,
               models::load_runner({.model_path = spec_.model_file,
                                    .device = options.device,
                                    .dtype = options.dtype,
                                    .kv_cache_dtype = options.kv_cache_dtype,
                                    .threads = static_cast<int>(threads),
                                    .max_step_tokens = limits.max_step_tokens,
                                    .max_step_seqs = limits.max_running_requests,
                                    .context_length = options.context_length,
                                    .config_override = options.json_model_override_args.value_or(""),
                                    .dummy_weights = options.load_format == "dummy",
                                    .memory_bytes = static_cast<size_t>(memory_limit_bytes() / host_ranks),
                                    .embeds_only = options.is_embedding,
                                    .record_routing = options.enable_return_routed_experts,
                                    .expert_recorder = recorder,
                                    .expert_placement = expert_placement_of(options),
                                    .rebalance = rebalance_of(options),
                                    .deepep = deepep_of(options),
                                    .groups = world_ ? &groups_ : nullptr,
                                    .overlap = overlap_.get(),
                                    .shared_weights_fd = weights_fd_},
                                   [this](double share, std::string_view what) { report_progress(share, what); }));
    if (!world_) return runner;
    auto group = std::make_unique<GroupRunner>(std::move(runner), groups_, overlap_.get(), split_threshold_of(options),
                                               shared_configuration(own_identity(options, spec_.model_file)));
    group->fill_groups_up(std::min(options.dp_fixed_shape_max_bs, limits.max_step_tokens));
    return std::unique_ptr<models::Runner>(std::move(group));
  }

  // The other ranks wait for this one however long it takes; null where there are none.
  std::unique_ptr<parallel::StayAlive> stay_alive_loading() const {
    if (!world_) return nullptr;
    return std::make_unique<parallel::StayAlive>(*world_, parallel::Progress{.phase = parallel::Phase::kLoad});
  }

  void report_progress(double share, std::string_view what) {
    const TimePoint now = real_clock().now();
    if (what == last_what_ && share < 1 && now - last_progress_ < std::chrono::milliseconds(100)) return;
    last_progress_ = now;
    last_what_ = what;
    link_.send(RankProgress{share, std::string(what)});
  }

  void report_states(const models::ModelInfo& model, const MemoryPlan& memory) {
    if (model.state_bytes_per_sequence == 0) return;
    SLUICE_LOG(info, kComponent,
               "rank {}: {:.0f} MiB of states of lightning attention, {:.1f} MiB for each of {} requests and {} cached "
               "prefixes",
               spec_.dp_rank, static_cast<double>(memory.state_bytes) / (1 << 20),
               static_cast<double>(model.state_bytes_per_sequence) / (1 << 20), memory.max_running_requests,
               memory.kept_states);
  }

  void report_ready(const models::ModelInfo& model, const MemoryPlan& memory, int64_t max_req_input_len) {
    constexpr double kMiB = 1 << 20;
    const bool shared = memory.weight_bytes < static_cast<int64_t>(model.weight_bytes);
    SLUICE_LOG(
        info, kComponent,
        "rank {}: {} in {}{}, {:.0f} MiB of weights{}, KV cache of {} tokens in {} ({:.0f} MiB), at most {} requests",
        spec_.process, model.model_type, model.dtype,
        model.rounds_inputs ? " with inputs of quantised weights in 8 bits" : "",
        static_cast<double>(memory.weight_bytes) / kMiB,
        shared ? fmt::format(" (its part of the {:.0f} MiB that it uses, some of them with other ranks)",
                             static_cast<double>(model.weight_bytes) / kMiB)
               : "",
        memory.max_total_tokens, model.kv_dtype, static_cast<double>(memory.kv_bytes) / kMiB,
        memory.max_running_requests);
    SLUICE_LOG(
        info, kComponent,
        "rank {}: {:.0f} MiB once all is in use: those, {:.0f} MiB of buffers of a step, {:.0f} of slot tables and "
        "{:.0f} of the program",
        spec_.process, static_cast<double>(memory.total_bytes()) / kMiB,
        static_cast<double>(memory.buffer_bytes) / kMiB, static_cast<double>(memory.table_bytes) / kMiB,
        static_cast<double>(memory.program_bytes) / kMiB);
    if (model.context_length > model.positions && spec_.process == 0) {
      SLUICE_LOG(warn, kComponent,
                 "--context-length {} is beyond the {} positions that the model was made for: what it answers there is "
                 "worth little",
                 model.context_length, model.positions);
    }
    link_.send(RankReady{.max_total_num_tokens = memory.max_total_tokens,
                         .max_req_input_len = max_req_input_len,
                         .max_running_requests = memory.max_running_requests,
                         .context_length = model.context_length,
                         .vocab_size = model.vocab_size,
                         .weight_bytes = static_cast<uint64_t>(memory.weight_bytes),
                         .kv_bytes = static_cast<uint64_t>(memory.kv_bytes),
                         .kv_bytes_per_token = model.kv_bytes_per_token,
                         .dtype = model.dtype,
                         .load_seconds = load_seconds_,
                         .startup_seconds = seconds(real_clock().now() - begun_),
                         .planned_bytes = static_cast<uint64_t>(memory.total_bytes())});
  }

  const RankSpec spec_;
  std::optional<LoadBoard> board_;  // absent: the front is on another host
  const int weights_fd_;
  const int group_fd_;
  RankLink link_;
  std::shared_ptr<parallel::ShmSegment> segment_;  // null: this rank is an instance
  std::unique_ptr<parallel::Communicator> world_;  // null: this rank is an instance by itself
  bool crowded_ = false;                           // ranks outnumber cores on a host of the instance
  parallel::Groups groups_;
  std::unique_ptr<parallel::Overlap> overlap_;  // null: nothing is computed while rows are on their way
  const TimePoint begun_ = real_clock().now();
  double load_seconds_ = 0;
  int64_t program_bytes_ = 0;
  TimePoint last_progress_{};
  std::string last_what_;
};

}  // namespace

std::string rank_spec_to_json(const RankSpec& spec) {
  EngineOptions options = spec.options;
  options.api_key.reset();
  options.admin_api_key.reset();
  return nlohmann::json{{"process", spec.process},
                        {"dp_rank", spec.dp_rank},
                        {"tp_rank", spec.tp_rank},
                        {"incarnation", spec.incarnation},
                        {"model_file", spec.model_file},
                        {"tokenizer_file", spec.tokenizer_file},
                        {"input_endpoint", spec.input_endpoint},
                        {"output_endpoint", spec.output_endpoint},
                        {"rendezvous", spec.rendezvous},
                        {"address", spec.address},
                        {"options", engine_options_to_json(options)}}
      .dump();
}

Result<RankSpec> rank_spec_from_json(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    RankSpec spec;
    spec.process = json.at("process").get<int64_t>();
    spec.dp_rank = json.at("dp_rank").get<int64_t>();
    spec.tp_rank = json.at("tp_rank").get<int64_t>();
    spec.incarnation = json.at("incarnation").get<uint64_t>();
    spec.model_file = json.at("model_file").get<std::string>();
    spec.tokenizer_file = json.at("tokenizer_file").get<std::string>();
    spec.input_endpoint = json.at("input_endpoint").get<std::string>();
    spec.output_endpoint = json.at("output_endpoint").get<std::string>();
    spec.rendezvous = json.at("rendezvous").get<std::string>();
    spec.address = json.at("address").get<std::string>();
    SLUICE_TRY(spec.options, engine_options_from_json(json.at("options")));
    return spec;
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("the spec of a rank: {}", e.what())};
  }
}

Result<Process> start_rank(const RankSpec& spec, const RankDescriptors& descriptors,
                           std::function<void(std::string_view)> on_stderr_line) {
  const std::string json = rank_spec_to_json(spec);
  const Descriptor file{memfd_create("sluice-rank-spec", MFD_CLOEXEC)};
  if (file.fd < 0 || write(file.fd, json.data(), json.size()) != static_cast<ssize_t>(json.size())) {
    return Error{ErrorCode::kExhausted,
                 fmt::format("writing the spec of rank {}: {}", spec.process, std::strerror(errno))};
  }
  ProcessOptions options;
  options.program = own_executable();
  options.arguments = {"rank"};
  options.descriptors = {{kSpecVariable, file.fd}};
  if (descriptors.load_board >= 0) options.descriptors[kBoardVariable] = descriptors.load_board;
  if (descriptors.weights >= 0) options.descriptors[kWeightsVariable] = descriptors.weights;
  if (descriptors.group >= 0) options.descriptors[kGroupVariable] = descriptors.group;
  options.keep_stderr_tail = true;
  options.on_stderr_line = std::move(on_stderr_line);
  options.stdout_to_stderr = true;
  return Process::start(options);
}

namespace {

int fail(const Error& error) {
  std::fprintf(stderr, "sluice rank: %s\n", error.message.c_str());
  return 1;
}

int serve_as_told() {
  const auto spec_fd = inherited_descriptor(kSpecVariable);
  const auto board_fd = inherited_descriptor(kBoardVariable);
  if (!spec_fd) {
    return fail({ErrorCode::kBadOption, "this command is started by `sluice server`, not by hand"});
  }
  const auto text = read_all(*spec_fd);
  close(*spec_fd);
  if (!text.ok()) return fail(text.error());
  auto spec = rank_spec_from_json(*text);
  if (!spec.ok()) return fail(spec.error());
  if (auto logging = log::init(log_options(spec->options)); !logging.ok()) return fail(logging.error());
  std::optional<LoadBoard> board;
  if (board_fd) {
    auto opened = LoadBoard::open(*board_fd);
    if (!opened.ok()) return fail(opened.error());
    board.emplace(std::move(*opened));
    if (spec->dp_rank < 0 || spec->dp_rank >= board->size()) {
      return fail(
          {ErrorCode::kInvalidArgument, fmt::format("rank {} of a load board of {}", spec->dp_rank, board->size())});
    }
  }
  if (spec->options.tp_size == 1) {
    Pulse::publish_at(board->pulse(spec->dp_rank));
    leave_stacks_in(board->stacks(spec->dp_rank));
  }
  auto link = RankLink::connect(spec->input_endpoint, spec->output_endpoint, spec->process, spec->incarnation);
  if (!link.ok()) return fail(link.error());
  const int weights_fd = inherited_descriptor(kWeightsVariable).value_or(-1);
  const int group_fd = inherited_descriptor(kGroupVariable).value_or(-1);
  return RankProcess(std::move(*spec), std::move(board), weights_fd, group_fd, std::move(*link)).run();
}

}  // namespace

int run_rank_process() {
  std::signal(SIGINT, SIG_IGN);
  try {
    return serve_as_told();
  } catch (const std::exception& e) {  // before it can tell the front itself
    return fail({ErrorCode::kInternal, e.what()});
  }
}

}  // namespace sluice::engine
