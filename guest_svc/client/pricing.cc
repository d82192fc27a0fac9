#include "guest_svc/client/pricing.h"

#include "iommu_core/base/cost_model.h"
#include "svc_common/conversions.h"

namespace viommu::client {
namespace {

// PriceSync with this constant 1 and all others 0 counts how often it is paid.
double PaidBySync(const v1::CostPreset& preset, const std::string& constant,
                  const v1::WorkloadResult& result) {
  v1::CostPreset unit;
  const v1::CostPreset all = ToProto(CostModel());
  for (const v1::CostConstant& c : all.constants()) {
    v1::CostConstant* out = unit.add_constants();
    out->set_name(c.name());
    out->set_value_ns(c.name() == constant ? 1 : 0);
  }
  unit.set_name(preset.name());
  const auto model = FromProto(unit);
  return model.ok() ? PriceSync(*model, FromProto(result.sync())).total() : 0;
}

}  // namespace

std::vector<std::pair<std::string, double>> PricedEvents(const v1::CostPreset& preset,
                                                         const v1::WorkloadResult& result) {
  std::vector<std::pair<std::string, double>> events;
  for (const v1::CostConstant& constant : preset.constants()) {
    const std::string& name = constant.name();
    double count = 0;
    if (name == "map_update_ns") {
      count = static_cast<double>(result.map_updates());
    } else if (name == "unmap_update_ns") {
      count = static_cast<double>(result.unmap_updates());
    } else if (name == "queue_build_ns" || name == "submission_ns") {
      // PriceSync prices one submission; there were as many as exits.
      count = static_cast<double>(result.exits());
    } else {
      count = PaidBySync(preset, name, result);
    }
    events.emplace_back(name, count);
  }
  return events;
}

double Reprice(const v1::CostPreset& preset, const v1::WorkloadResult& result) {
  double total = result.modelled_wait_ns();
  const auto events = PricedEvents(preset, result);
  for (size_t i = 0; i < events.size(); ++i) {
    total += events[i].second * preset.constants(static_cast<int>(i)).value_ns();
  }
  return total;
}

}  // namespace viommu::client
