#include "obs/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <limits>
#include <list>
#include <map>
#include <mutex>

#include "base/check.h"

namespace sluice::obs {

Histogram::Histogram(std::vector<double> upper_bounds) : cells_(std::make_shared<Cells>()) {
  SLUICE_CHECK(std::is_sorted(upper_bounds.begin(), upper_bounds.end()), "histogram buckets must ascend");
  cells_->counts = std::make_unique<std::atomic<uint64_t>[]>(upper_bounds.size() + 1);
  cells_->bounds = std::move(upper_bounds);
}

void Histogram::observe(double value, uint64_t n) {
  const auto& bounds = cells_->bounds;
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  cells_->counts[static_cast<size_t>(bucket)].fetch_add(n, std::memory_order_relaxed);
  cells_->sum.fetch_add(value * static_cast<double>(n), std::memory_order_relaxed);
}

uint64_t Histogram::count() const {
  uint64_t total = 0;
  for (size_t i = 0; i <= cells_->bounds.size(); ++i) total += cells_->counts[i].load(std::memory_order_relaxed);
  return total;
}

class Metrics::Impl {
 public:
  using Series = std::variant<Counter, Gauge, Histogram>;

  struct Declared {
    Family family;
    std::map<LabelValues, Series> series;  // ordered, so that renderings can be compared
  };

  template <class Handle>
  Handle resolve(std::string_view name, Kind kind, LabelValues values) {
    std::lock_guard lock(mutex_);
    auto found = families_.find(name);
    SLUICE_CHECK(found != families_.end(), "metric family {} is not declared", name);
    Declared& declared = found->second;
    SLUICE_CHECK(declared.family.kind == kind, "metric family {} is of another kind", name);
    SLUICE_CHECK(declared.family.labels.size() == values.size(), "metric family {} has {} labels, not {}", name,
                 declared.family.labels.size(), values.size());
    auto series = declared.series.find(values);
    if (series == declared.series.end()) {
      series = declared.series.emplace(std::move(values), make<Handle>(declared.family)).first;
    }
    return std::get<Handle>(series->second);
  }

  template <class Handle>
  static Series make(const Family& family) {
    if constexpr (std::is_same_v<Handle, Histogram>) {
      return Histogram(family.buckets);
    } else {
      return Handle();
    }
  }

  static prometheus::ClientMetric collect(const Family& family, const LabelValues& values, const Series& series) {
    prometheus::ClientMetric metric;
    for (size_t i = 0; i < values.size(); ++i) metric.label.push_back({std::string(family.labels[i]), values[i]});
    if (const auto* counter = std::get_if<Counter>(&series)) {
      metric.counter.value = counter->value();
    } else if (const auto* gauge = std::get_if<Gauge>(&series)) {
      metric.gauge.value = gauge->value();
    } else {
      const auto& cells = *std::get<Histogram>(series).cells_;
      uint64_t below = 0;
      for (size_t i = 0; i <= cells.bounds.size(); ++i) {
        below += cells.counts[i].load(std::memory_order_relaxed);
        const double bound = i < cells.bounds.size() ? cells.bounds[i] : std::numeric_limits<double>::infinity();
        metric.histogram.bucket.push_back({below, bound});
      }
      metric.histogram.sample_count = below;
      metric.histogram.sample_sum = cells.sum.load(std::memory_order_relaxed);
    }
    return metric;
  }

  static prometheus::MetricType type_of(Kind kind) {
    switch (kind) {
      case Kind::kCounter:
        return prometheus::MetricType::Counter;
      case Kind::kGauge:
        return prometheus::MetricType::Gauge;
      case Kind::kHistogram:
        return prometheus::MetricType::Histogram;
    }
    return prometheus::MetricType::Untyped;
  }

  std::string render() {
    // Held while the functions run, so that one that was taken back does not run any more; and until their work was
    // read, so that another rendering does not meet it half done.
    std::lock_guard rendering(refresh_mutex_);
    for (const auto& refresh : refreshers_) refresh();
    std::vector<prometheus::MetricFamily> collected;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [name, declared] : families_) {
        if (declared.series.empty()) continue;
        prometheus::MetricFamily out;
        out.name = std::string(name);
        out.help = std::string(declared.family.help);
        out.type = type_of(declared.family.kind);
        for (const auto& [values, series] : declared.series) {
          out.metric.push_back(collect(declared.family, values, series));
        }
        collected.push_back(std::move(out));
      }
    }
    return prometheus::TextSerializer().Serialize(collected);
  }

  std::mutex mutex_;  // guards families_; taken after refresh_mutex_ or alone
  std::map<std::string_view, Declared> families_;

  std::mutex refresh_mutex_;
  std::list<std::function<void()>> refreshers_;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

void Metrics::declare(const std::vector<Family>& families) {
  std::lock_guard lock(impl_->mutex_);
  for (const auto& family : families) {
    SLUICE_CHECK(family.help.find('\n') == std::string_view::npos, "help of {} has more than one line", family.name);
    const bool added = impl_->families_.emplace(family.name, Impl::Declared{family, {}}).second;
    SLUICE_CHECK(added, "metric family {} is declared twice", family.name);
  }
}

Counter Metrics::counter(std::string_view family, LabelValues values) {
  return impl_->resolve<Counter>(family, Kind::kCounter, std::move(values));
}
Gauge Metrics::gauge(std::string_view family, LabelValues values) {
  return impl_->resolve<Gauge>(family, Kind::kGauge, std::move(values));
}
Histogram Metrics::histogram(std::string_view family, LabelValues values) {
  return impl_->resolve<Histogram>(family, Kind::kHistogram, std::move(values));
}

void Metrics::remove_series(std::string_view label, std::string_view value) {
  std::lock_guard lock(impl_->mutex_);
  for (auto& [name, declared] : impl_->families_) {
    const auto& labels = declared.family.labels;
    const auto at = static_cast<size_t>(std::find(labels.begin(), labels.end(), label) - labels.begin());
    if (at == labels.size()) continue;
    std::erase_if(declared.series, [&](const auto& series) { return series.first[at] == value; });
  }
}

void Metrics::clear(std::string_view family) {
  std::lock_guard lock(impl_->mutex_);
  const auto found = impl_->families_.find(family);
  SLUICE_CHECK(found != impl_->families_.end(), "metric family {} is not declared", family);
  found->second.series.clear();
}

std::shared_ptr<void> Metrics::before_render(std::function<void()> refresh) {
  std::lock_guard lock(impl_->refresh_mutex_);
  impl_->refreshers_.push_back(std::move(refresh));
  auto position = std::prev(impl_->refreshers_.end());
  return std::shared_ptr<void>(nullptr, [impl = impl_.get(), position](void*) {
    std::lock_guard lock(impl->refresh_mutex_);
    impl->refreshers_.erase(position);
  });
}

std::string Metrics::render() const { return impl_->render(); }

}  // namespace sluice::obs
