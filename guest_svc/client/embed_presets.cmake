# cmake -DOUT=FILE -DFOLDER=deploy/presets -P embed_presets.cmake: writes the presets as C++.
file(GLOB files ${FOLDER}/*.textproto)
list(SORT files)
list(LENGTH files count)
set(text "// Made from deploy/presets by embed_presets.cmake.
#ifndef VIOMMU_EMBEDDED_PRESETS_H_
#define VIOMMU_EMBEDDED_PRESETS_H_

namespace viommu::client {

struct EmbeddedPreset {
  const char* name;
  const char* text;
};
inline constexpr EmbeddedPreset kEmbeddedPresets[${count}] = {
")
foreach(file ${files})
  get_filename_component(name ${file} NAME_WE)
  file(READ ${file} content)
  string(APPEND text "{\"${name}\", R\"preset(${content})preset\"},\n")
endforeach()
string(APPEND text "};

}  // namespace viommu::client

#endif  // VIOMMU_EMBEDDED_PRESETS_H_
")
file(WRITE ${OUT} "${text}")
