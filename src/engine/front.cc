#include "engine/front.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <future>
#include <numeric>

#include "base/log.h"
#include "base/machine.h"
#include "base/ready_pipe.h"
#include "base/rng.h"
#include "engine/certificates.h"
#include "engine/deterministic.h"
#include "engine/dp_controller.h"
#include "engine/environment.h"
#include "engine/expert_options.h"
#include "engine/explain/auto_layout.h"
#include "engine/explain/explain.h"
#include "engine/http_api.h"
#include "engine/layout_options.h"
#include "engine/model_files.h"
#include "engine/nodes/leader.h"
#include "engine/scheduler_tuning.h"
#include "engine/server_environment.h"
#include "kernels/kernels.h"
#include "models/sharding.h"
#include "net/server.h"
#include "net/tls.h"
#include "obs/metrics.h"
#include "obs/trace_exporter.h"
#include "protocol/errors.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/front";
// For the other hosts of an instance: people and schedulers start them one after another.
constexpr Duration kNodesTimeout = std::chrono::minutes(10);
// Loading is nearly all of a start.
constexpr double kLoadingShare = 0.95;

// Loops parse, tokenize and write; the cores belong to the ranks. Two at least, so that a long prompt being tokenized
// does not hold up a health probe.
int loop_count() { return static_cast<int>(std::clamp<int64_t>(usable_cores() / 4, 2, 8)); }

// SGLANG_WARMUP_TIMEOUT. One token of a tiny prompt: a rank that takes longer is stuck.
Result<Duration> warm_up_limit() {
  constexpr double kDefault = 120;
  double limit = -1;
  SLUICE_TRY_VOID(read_variable("SGLANG_WARMUP_TIMEOUT", -1.0, 86400.0, limit));
  return from_seconds(limit > 0 ? limit : kDefault);
}

// The memory in which the ranks share their packed weights; -1 where they do not. Changes the environment: before the
// first thread.
Result<int> weights_memory(const EngineOptions& options) {
  const int inherited = inherited_descriptor(kWeightsVariable).value_or(-1);
  const kernels::BackendRow* device = kernels::find_backend(options.device);
  const bool host_visible = device != nullptr && device->host_visible;
  if (inherited >= 0 && host_visible && options.tp_size == 1) return inherited;
  if (inherited >= 0) ::close(inherited);
  // The ranks of one instance have different parts.
  if (!host_visible || options.dp_size == 1 || options.tp_size > 1) return -1;
  const int fd = ::memfd_create("sluice-weights", MFD_CLOEXEC);
  if (fd < 0) {
    return Error{ErrorCode::kExhausted, fmt::format("no memory for shared weights: {}", std::strerror(errno))};
  }
  return fd;
}

}  // namespace

class Front::Impl {
 public:
  Impl(const EngineOptions& as_given, const EngineOptions& options, FrontHooks hooks, int weights_fd,
       Duration warm_up_limit)
      : as_given_(as_given),
        options_(options),
        warm_up_limit_(warm_up_limit),
        hooks_(std::move(hooks)),
        weights_fd_(weights_fd),
        shares_(static_cast<size_t>(rank_count(options))),
        loops_(loop_count(), "http") {}

  ~Impl() {
    if (api_ != nullptr) api_->stop();
    server_.reset();
    // Last outputs still go to the API's requests; it is there until the controller's thread has ended.
    controller_.reset();
    nodes_.reset();  // no handle of a rank elsewhere is left
    api_.reset();
    if (weights_fd_ >= 0) ::close(weights_fd_);
  }

  Result<void> start() {
    SLUICE_TRY(const ModelFiles files, find_model_files(options_));
    SLUICE_TRY(auto model, load_served_model({.model_path = options_.model_path,
                                              .name = options_.served_model_name.value_or(""),
                                              .model_file = files.model,
                                              .tokenizer_file = files.tokenizer,
                                              .config_override = options_.json_model_override_args.value_or(""),
                                              .chat_template = options_.chat_template.value_or("")}));
    const moe::ExpertPlacement experts = expert_placement_of(options_);
    if (options_.tp_size > 1 || options_.ep_size > 1 || !experts.trivial()) {
      SLUICE_TRY_VOID(models::check_sharding(model.config, layout_of(options_, 0), experts));
    }
    if (const auto layout = layout_of(options_, 0); layout.dp_attention()) {
      const double gain = dp_attention_gain(model.config, layout);
      SLUICE_LOG(info, kComponent,
                 "DP attention: {:.1f} times as many unique tokens for the same memory of keys and values{}", gain,
                 gain > 1 ? "" : ": this model gains none, and each group has its own copy of the attention weights");
    }
    std::shared_ptr<net::TlsContext> traces;
    if (options_.enable_trace) {
      SLUICE_TRY(traces, obs::trace_certificates());
      keep_certificate_fresh(traces, loops_[0], "the receiver of traces");
    }
    SLUICE_TRY_VOID(listen());
    if (options_.nnodes > 1) SLUICE_TRY_VOID(gather_nodes(files));
    SLUICE_TRY_VOID(start_ranks(files));
    if (!options_.skip_server_warmup) SLUICE_TRY_VOID(warm_up(model.tokenizer->bos_id().value_or(0)));
    api_ = std::make_unique<HttpApi>(options_, std::move(model), *controller_, metrics_, std::move(traces));
    handler_ = api_->handler();
    serving_.store(true, std::memory_order_release);
    api_->set_status(ServerStatus::kUp);
    return {};
  }

  size_t drain(Duration grace) {
    api_->set_status(ServerStatus::kDraining);
    return server_->drain(grace);
  }

  uint16_t port() const { return port_; }
  obs::Metrics& metrics() { return metrics_; }

 private:
  Result<void> listen() {
    SLUICE_TRY(auto certificate, load_certificate(options_));
    keep_certificate_fresh(certificate, loops_[0], "clients");
    net::ServerOptions serving;
    // So a gateway notices that the caches which it knew are gone (gateway/process_mark).
    serving.headers.add("X-Sluice-Process", fmt::format("{:016x}", random_seed()));
    serving.tls = std::move(certificate);
    server_ = std::make_unique<net::Server>(loops_, std::move(serving),
                                            [this](net::ServerExchange& client) { return handle(client); });
    SLUICE_TRY(port_, server_->listen(options_.host, static_cast<uint16_t>(options_.port)));
    return {};
  }

  net::Task<> handle(net::ServerExchange& client) {
    if (serving_.load(std::memory_order_acquire)) return handler_(client);
    return say_starting(client);
  }

  static net::Task<> say_starting(net::ServerExchange& client) {
    auto response = net::Response::json(503, protocol::error_body(503, "the model is being loaded"));
    response.headers.add("Retry-After", "1");
    (void)co_await client.respond(std::move(response));
  }

  Result<void> gather_nodes(const ModelFiles& files) {
    report(0, "waiting for other nodes");
    SLUICE_TRY(nodes_, NodeLeader::listen(options_, own_identity(as_given_, files.model)));
    return nodes_->wait_for_all(kNodesTimeout, hooks_.stop_descriptor);
  }

  Result<void> start_ranks(const ModelFiles& files) {
    const LoadBalanceRow* method = find_load_balance(options_.load_balance_method);
    SLUICE_CHECK(method != nullptr, "--load-balance-method {} has no row", options_.load_balance_method);
    if (is_old_name(*method, options_.load_balance_method)) {
      SLUICE_LOG(warn, kComponent, "--load-balance-method {} is an old name and will go away; use {}",
                 options_.load_balance_method, method->name);
    }
    SLUICE_TRY(auto board, LoadBoard::create(options_.dp_size));
    board_.emplace(std::move(board));
    DataParallelControllerOptions controlling{
        .method = method, .tp_size = options_.tp_size, .instances = instance_count(options_)};
    controlling.silence_limit =
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options_.watchdog_timeout));
    controlling.start_rank = [this, files](RankSpec spec, int group_fd) -> Result<std::unique_ptr<RankHandle>> {
      spec.options = options_;
      if (const int64_t node = spec.process / ranks_per_host(options_); nodes_ && node > 0) {
        return nodes_->start_rank(node, spec);
      }
      if (spec.model_file.empty()) spec.model_file = files.model;
      spec.tokenizer_file = files.tokenizer;
      std::shared_ptr<parallel::ShmSegment> shown_in;
      if (nodes_) {
        spec.address = nodes_->address();
        SLUICE_TRY(shown_in, parallel::ShmSegment::create(1));
        group_fd = shown_in->fd();
      }
      SLUICE_TRY(auto process, start_rank(spec, {.load_board = board_->fd(), .weights = weights_fd_, .group = group_fd},
                                          hooks_.on_rank_line));
      return handle_of(std::move(process), std::move(shown_in));
    };
    if (nodes_) {
      controlling.hosts = options_.nnodes;
      controlling.address = nodes_->address();
      controlling.absent = [this] { return nodes_->absent(); };
    }
    SLUICE_TRY(controller_,
               DataParallelController::start(
                   std::move(controlling), *board_, real_clock(),
                   [this](int64_t rank, double share, std::string_view what) { on_progress(rank, share, what); },
                   hooks_.stop_descriptor));
    return {};
  }

  // The controller's thread.
  void on_progress(int64_t rank, double share, std::string_view what) {
    shares_[static_cast<size_t>(rank)] = share;
    // Where weights are shared one rank packs them for all: its share is the whole's, and those that wait say nothing.
    double done = *std::ranges::max_element(shares_);
    if (weights_fd_ >= 0) {
      if (share < done) return;
    } else {
      done = std::accumulate(shares_.begin(), shares_.end(), 0.0) / static_cast<double>(shares_.size());
    }
    report(kLoadingShare * done, shares_.size() == 1 ? std::string(what) : fmt::format("rank {}: {}", rank, what));
  }

  void report(double share, std::string_view what) const {
    if (hooks_.on_progress) hooks_.on_progress(share, what);
  }

  // One token from every rank: what is made lazily is made now, and a rank that cannot answer is found out. The caches
  // are as new afterwards.
  Result<void> warm_up(int32_t token) {
    report(kLoadingShare, "warming up");
    struct End {
      FinishReason finish;
      TimePoint at;
    };
    std::vector<std::future<End>> ends;
    const TimePoint deadline = real_clock().now() + warm_up_limit_;
    for (int64_t rank = 0; rank < options_.dp_size; ++rank) {
      GenerateRequest request{.rid = fmt::format("warm-up-{}", rank), .input_ids = {token}};
      request.sampling.max_new_tokens = 1;
      request.sampling.temperature = 0;
      auto promise = std::make_shared<std::promise<End>>();
      ends.push_back(promise->get_future());
      SLUICE_TRY(const int64_t sent, controller_->submit(std::move(request), rank, [promise](RequestOutput output) {
        if (output.finish.kind != FinishKind::kNone) promise->set_value({std::move(output.finish), real_clock().now()});
      }));
      SLUICE_CHECK(sent == rank, "pinned to rank {}, sent to {}", rank, sent);
    }
    for (size_t rank = 0; rank < ends.size(); ++rank) {
      // By when it answered, not by when this looks.
      std::optional<End> end;
      if (ends[rank].wait_until(deadline) == std::future_status::ready) end = ends[rank].get();
      if (!end || end->at > deadline) {
        return Error{ErrorCode::kTimeout, fmt::format("rank {} did not answer the warm-up request within {:g} s", rank,
                                                      seconds(warm_up_limit_))};
      }
      const FinishReason& finish = end->finish;
      if (finish.kind == FinishKind::kAbort) {
        return Error{ErrorCode::kUnavailable, fmt::format("rank {} failed to warm up: {}", rank, finish.message)};
      }
    }
    auto flushed = std::make_shared<std::promise<Result<Backend::RankAnswers>>>();
    auto flush = flushed->get_future();
    controller_->flush_cache([flushed](auto result) { flushed->set_value(std::move(result)); });
    SLUICE_TRY(const auto answers, flush.get());  // bounded by the controller
    (void)answers;
    return {};
  }

  const EngineOptions as_given_;
  const EngineOptions options_;  // adjusted
  const Duration warm_up_limit_;
  const FrontHooks hooks_;
  const int weights_fd_;        // ours; -1: not shared
  std::vector<double> shares_;  // [ranks] of loading; the controller's thread
  obs::Metrics metrics_;
  net::LoopGroup loops_;
  std::optional<LoadBoard> board_;
  std::unique_ptr<NodeLeader> nodes_;  // null: this is the only host
  std::unique_ptr<DataParallelController> controller_;
  std::unique_ptr<HttpApi> api_;
  net::Handler handler_;              // set before serving_
  std::atomic<bool> serving_{false};  // false: the ranks are starting
  std::unique_ptr<net::Server> server_;
  uint16_t port_ = 0;
};

Result<std::unique_ptr<Front>> Front::start(const EngineOptions& options, FrontHooks hooks) {
  SLUICE_TRY_VOID(check_engine_options(options));
  EngineOptions adjusted = options;
  if (adjusted.layout == "auto") {
    SLUICE_TRY(const Hardware machine, measure_this_machine());
    SLUICE_TRY(const auto lines, choose_layout(adjusted, machine));
    for (const std::string& line : lines) SLUICE_LOG(info, kComponent, "{}", line);
  }
  for (const std::string& line : adjust_layout(adjusted)) SLUICE_LOG(warn, kComponent, "{}", line);
  SLUICE_TRY_VOID(parallel::check_layout(layout_of(adjusted, 0)));
  SLUICE_TRY(const auto expert_lines, adjust_experts(adjusted));
  for (const std::string& line : expert_lines) SLUICE_LOG(warn, kComponent, "{}", line);
  SLUICE_TRY(const auto deterministic_lines, settle_deterministic(adjusted));
  for (const std::string& line : deterministic_lines) SLUICE_LOG(info, kComponent, "{}", line);
  if (adjusted.moe_runner_backend != "auto") {
    SLUICE_LOG(info, kComponent, "--moe-runner-backend {}: experts are multiplied by our own grouped products",
               adjusted.moe_runner_backend);
  }
  SLUICE_TRY(const Duration limit, warm_up_limit());
  SLUICE_TRY_VOID(scheduler_tuning_from_environment());  // which the ranks read again, as
  SLUICE_TRY_VOID(server_environment());
  SLUICE_TRY(const int weights_fd, weights_memory(adjusted));
  std::unique_ptr<Front> front(
      new Front(std::make_unique<Impl>(options, adjusted, std::move(hooks), weights_fd, limit)));
  SLUICE_TRY_VOID(front->impl_->start());
  return front;
}

Front::Front(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Front::~Front() = default;
uint16_t Front::port() const { return impl_->port(); }
obs::Metrics& Front::metrics() { return impl_->metrics(); }
size_t Front::drain(Duration grace) { return impl_->drain(grace); }

}  // namespace sluice::engine
