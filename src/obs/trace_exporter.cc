#include "obs/trace_exporter.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/redirect_error.hpp>
#include <cstdlib>
#include <future>
#include <mutex>
#include <span>
#include <variant>

#include "base/log.h"
#include "net/client.h"
#include "net/stream.h"
#include "net/tls.h"
#include "obs/grpc_client.h"

namespace sluice::obs {
namespace {

constexpr Duration kDeadline = std::chrono::seconds(10);  // of one delivery
constexpr size_t kBatch = 128;                            // requests
constexpr size_t kSpansOfRecord = 8;                      // about
constexpr int kAttempts = 5;
constexpr const char* kMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

// How one delivery ended. What may pass is tried again.
struct Verdict {
  bool delivered = false;
  bool may_pass = true;
  std::string message;
};

// OpenTelemetry Protocol, "Failures": CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE,
// UNAVAILABLE, DATA_LOSS.
bool may_pass(int grpc_status) {
  constexpr int kPassing[] = {1, 4, 8, 10, 11, 14, 15};
  return std::ranges::find(kPassing, grpc_status) != std::end(kPassing);
}
bool may_pass_over_http(int status) { return status == 429 || (status >= 502 && status <= 504); }

// A request whose spans are made when it is sent, or those that it has.
using Waiting = std::variant<RequestRecord, std::vector<Span>>;

std::vector<Span> take_spans(Waiting& request) {
  if (const auto* record = std::get_if<RequestRecord>(&request)) return spans_of(*record);
  return std::move(std::get<std::vector<Span>>(request));
}

size_t span_count(const Waiting& request) {
  const auto* spans = std::get_if<std::vector<Span>>(&request);
  return spans == nullptr ? kSpansOfRecord : spans->size();
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

Result<TraceEndpoint> parse_trace_endpoint(std::string_view text) {
  constexpr std::string_view kGrpcs = "grpcs://";
  const bool over_tls = text.starts_with(kGrpcs);
  const std::string_view address = over_tls ? text.substr(kGrpcs.size()) : text;
  const bool is_url = address.find("://") != std::string_view::npos;
  const bool is_grpc = over_tls || !is_url;
  auto url = net::parse_url(address);
  if (!url.ok()) return url.error();
  const bool has_port = address.find(':', address.rfind(']') == std::string_view::npos ? 0 : address.rfind(']')) !=
                        std::string_view::npos;
  if (is_grpc && (is_url || !has_port || !url->path.empty())) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("{} is neither host:port or grpcs://host:port (OTLP/gRPC) nor a URL (OTLP/HTTP)", text)};
  }
  if (!is_grpc && url->path.empty()) url->path = "/v1/traces";
  url->tls = url->tls || over_tls;
  return TraceEndpoint{is_grpc, std::move(url).value()};
}

Result<std::shared_ptr<net::TlsContext>> trace_certificates() {
  net::TlsFiles files{.role = net::TlsFiles::Role::kClient,
                      .certificate = environment("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
                      .key = environment("OTEL_EXPORTER_OTLP_CLIENT_KEY")};
  const std::string authorities = environment("OTEL_EXPORTER_OTLP_CERTIFICATE");
  if (files.certificate.empty() != files.key.empty()) {
    return Error{ErrorCode::kBadOption,
                 "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY need each other"};
  }
  if (authorities.empty() && files.certificate.empty()) return std::shared_ptr<net::TlsContext>();
  if (!authorities.empty()) files.authorities.push_back(authorities);
  auto loaded = net::TlsContext::load(std::move(files));
  if (loaded.ok()) return loaded;
  return Error{
      ErrorCode::kBadOption,
      fmt::format("OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE, _CLIENT_KEY: {}", loaded.error().message)};
}

std::string trace_service_name(std::string_view otherwise) {
  std::string name = environment("OTEL_SERVICE_NAME");
  return name.empty() ? std::string(otherwise) : name;
}

class TraceExporter::Impl {
 public:
  Impl(TraceEndpoint endpoint, std::string service_name, Counters counters, Timing timing,
       std::shared_ptr<net::TlsContext> tls)
      : endpoint_(std::move(endpoint)),
        resource_{{"service.name", std::move(service_name)}, {"telemetry.sdk.language", std::string("cpp")}},
        counters_(std::move(counters)),
        timing_(timing),
        http_(loop_, {.tls = tls}),
        grpc_(loop_, endpoint_.url.host, endpoint_.url.port,
              !endpoint_.url.tls ? nullptr : (tls != nullptr ? std::move(tls) : net::TlsContext::of_system())),
        timer_(loop_.executor()),
        farewell_(loop_.executor()) {
    waiting_.reserve(64);
    loop_.start();
    loop_.spawn([this] { return run(); });
  }

  ~Impl() {
    loop_.post([this] {
      stopping_ = true;
      timer_.cancel();
      farewell_.expires_after(timing_.farewell);
      farewell_.async_wait([this](const boost::system::error_code& error) {
        if (!error) break_off();
      });
    });
    ended_.get_future().wait();
    loop_.stop();
    loop_.join();
  }

  // Before anything is copied for it.
  bool has_room(size_t spans) {
    const bool room = size_.load(std::memory_order_relaxed) < kMostWaiting &&
                      spans_.load(std::memory_order_relaxed) + spans <= kMostSpans;
    if (!room) counters_.queue_full.add();
    return room;
  }

  void add(Waiting request) {
    bool news = false;
    {
      std::lock_guard lock(mutex_);
      const bool was_half_full = half_full();
      spans_.store(spans_ + span_count(request), std::memory_order_relaxed);
      waiting_.push_back(std::move(request));
      size_.store(waiting_.size(), std::memory_order_relaxed);
      news = size_ == 1 || (half_full() && !was_half_full);
    }
    // The first one begins a batch, and half a queue will not wait for its end.
    if (news) {
      loop_.post([this] { timer_.cancel(); });
    }
  }

 private:
  // Any thread.
  bool half_full() const { return size_ >= kMostWaiting / 2 || spans_ >= kMostSpans / 2; }

  // Loop thread, all below.
  net::Task<> run() {
    for (;;) {
      if (size_ == 0 && !stopping_) co_await wait(Duration::max());
      if (size_ == 0 && stopping_) break;
      if (size_ == 0) continue;
      if (!stopping_ && !half_full()) co_await wait(timing_.gathering);
      std::vector<Waiting> requests = take();
      for (size_t at = 0; at < requests.size();) {
        std::vector<Span> spans;
        const size_t first = at;
        do {
          std::ranges::move(take_spans(requests[at++]), std::back_inserter(spans));
        } while (at < requests.size() && at - first < kBatch && spans.size() + span_count(requests[at]) <= kBatchSpans);
        co_await deliver(std::move(spans), at - first);
      }
    }
    farewell_.cancel();
    grpc_.close();
    ended_.set_value();
  }

  std::vector<Waiting> take() {
    std::lock_guard lock(mutex_);
    size_.store(0, std::memory_order_relaxed);
    spans_.store(0, std::memory_order_relaxed);
    return std::exchange(waiting_, {});
  }

  // Ends early when there is news.
  net::Task<> wait(Duration duration) {
    if (duration == Duration::max()) {
      timer_.expires_at(TimePoint::max());
    } else {
      timer_.expires_after(duration);
    }
    boost::system::error_code ended;
    co_await timer_.async_wait(net::asio::redirect_error(net::use_task, ended));
  }

  void break_off() {
    grpc_.close();
    if (asked_ != nullptr) asked_->close();
    given_up_ = true;
  }

  // All spans of so many requests.
  net::Task<> deliver(std::vector<Span> spans, size_t requests) {
    const std::string message = encode_spans(std::exchange(spans, {}), resource_);
    Verdict verdict;
    Duration pause = timing_.first_pause;
    for (int attempt = 1; attempt <= kAttempts && !given_up_; ++attempt) {
      verdict = co_await send(message);
      if (verdict.delivered || !verdict.may_pass || stopping_) break;
      const TimePoint until = std::chrono::steady_clock::now() + pause;
      // News of further requests ends a wait and is none here.
      while (!stopping_ && std::chrono::steady_clock::now() < until && attempt < kAttempts) {
        co_await wait(until - std::chrono::steady_clock::now());
      }
      pause *= 2;
    }
    (verdict.delivered ? counters_.exported : counters_.failed).add(static_cast<double>(requests));
    if (!verdict.delivered) {
      SLUICE_LOG_EVERY(60, warn, "obs/traces", "traces not delivered to {}: {} ({})", endpoint_.url.authority(),
                       requests, verdict.message);
    }
  }

  net::Task<Verdict> send(const std::string& message) {
    Verdict verdict;
    if (endpoint_.is_grpc) {
      auto answer = co_await grpc_.call(kMethod, message, kDeadline);
      if (!answer.ok()) {
        verdict.message = answer.error().message;
      } else {
        verdict = {answer->status == 0, may_pass(answer->status),
                   fmt::format("gRPC status {} {}", answer->status, answer->message)};
      }
      co_return verdict;
    }
    auto answer = co_await post(message);
    if (!answer.ok()) {
      verdict.message = answer.error().message;
    } else {
      verdict = {answer->status / 100 == 2, may_pass_over_http(answer->status),
                 fmt::format("HTTP status {}", answer->status)};
    }
    co_return verdict;
  }

  net::Task<Result<net::Response>> post(const std::string& message) {
    net::RequestHead head;
    head.method = "POST";
    head.headers.add("Content-Type", "application/x-protobuf");
    head.headers.add("User-Agent", "sluice");
    const net::ClientTimeouts timeouts{.connect = kDeadline, .head = kDeadline, .silence = kDeadline};
    std::function<void(net::ClientExchange&)> on_exchange = [this](net::ClientExchange& exchange) {
      asked_ = &exchange;
    };
    auto sent = co_await http_.send(endpoint_.url, std::move(head), message, timeouts, std::move(on_exchange));
    if (!sent.ok()) {
      asked_ = nullptr;
      co_return sent.error();
    }
    const std::unique_ptr<net::ClientExchange> exchange = std::move(sent).value();
    auto answer = co_await exchange->read_head();
    net::Response response;
    Result<std::string> body = std::string();
    if (answer.ok()) {
      response.status = answer->status;
      body = co_await exchange->read_all(size_t{1} << 20);
    }
    asked_ = nullptr;
    if (!answer.ok()) co_return answer.error();
    if (!body.ok()) co_return body.error();
    co_return response;
  }

  // Constant after construction.
  const TraceEndpoint endpoint_;
  const std::vector<Attribute> resource_;
  Counters counters_;
  const Timing timing_;

  std::atomic<size_t> size_{0}, spans_{0};  // of waiting_
  std::mutex mutex_;                        // guards waiting_
  std::vector<Waiting> waiting_;

  net::EventLoop loop_{"traces"};
  std::promise<void> ended_;

  // Loop thread.
  net::Client http_;
  GrpcClient grpc_;
  net::Timer timer_, farewell_;
  net::ClientExchange* asked_ = nullptr;  // by HTTP, now
  bool stopping_ = false;
  bool given_up_ = false;
};

TraceExporter::TraceExporter(TraceEndpoint endpoint, std::string service_name, Counters counters, Timing timing,
                             std::shared_ptr<net::TlsContext> tls)
    : impl_(std::make_unique<Impl>(std::move(endpoint), std::move(service_name), std::move(counters), timing,
                                   std::move(tls))) {}
TraceExporter::~TraceExporter() = default;
void TraceExporter::add(const RequestRecord& record) {
  if (impl_->has_room(kSpansOfRecord)) impl_->add(record);
}
void TraceExporter::add(std::vector<Span> spans) {
  if (impl_->has_room(spans.size())) impl_->add(std::move(spans));
}

}  // namespace sluice::obs
