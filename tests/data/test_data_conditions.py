"""Reading of classes and condition images: pairing, and refusals."""

import nibabel as nib
import numpy as np
import pytest
from made import make_dicom
from PIL import Image
from trees import chestxray

from vmddpm.data import DataConfig, DataError
from vmddpm.data.conditioned import conditioned
from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.layouts import chestxray as chestxray_layout
from vmddpm.data.pairs import varying_part
from vmddpm.data.prepare import prepare_store


@pytest.fixture
def read(tmp_path):
    def read(root, data=None, classes=(), **condition):
        config = DataConfig(str(root), size=8, min_foreground=0, cache_dir=str(tmp_path / "cache"), **(data or {}))
        return conditioned(config, ConditionConfig(**condition))

    return read


def picture(path, value=0, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8) + np.eye(*size, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Three patients in two folders."""
    for name in ("ill/p1/a.png", "ill/p2/b.png", "well/p3/c.png"):
        picture(tmp_path / "tree" / name, len(name))
    return tmp_path / "tree"


def table(tmp_path, *lines, name="labels.csv"):
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(tmp_path / name)


def classes_of(images):
    return [[images.classes[k] for k in row.nonzero().flatten()] for row in images.labels]


def test_folders(tree, read):
    images = read(tree, labels="folder")
    assert (images.classes, classes_of(images)) == (("ill", "well"), [["ill"], ["ill"], ["well"]])
    assert images.counts() == {"ill": 2, "well": 1}
    inner = read(tree, labels="folder", pattern=r"/(p\d)/")
    assert classes_of(inner) == [["p1"], ["p2"], ["p3"]]


@pytest.mark.parametrize(
    "names",
    [("ill/p1/a.png", "ill/p2/b.png", "well/p3/c.png"), ("a.png", "b.png", "c.png"), ("a", "b", "c"),
     ("p1", "p2", "p3"), ("ill/p1", "ill/p2", "well/p3"), ("./ill/p1/a.png", "ill\\p2\\b.png", " c ")],
)  # fmt: skip
def test_a_row_names_a_path_a_name_or_a_folder(tree, tmp_path, read, names):
    rows = [f"{name},{kind},7" for name, kind in zip(names, "xyx")]
    images = read(tree, labels="csv", table=table(tmp_path, "file , label,age", *rows))
    assert classes_of(images) == [["x"], ["y"], ["x"]]


def test_other_columns_tabs_byte_order_mark_and_several_classes(tree, tmp_path, read):
    path = table(tmp_path, "\ufeffid\tfinding", "a\tm|n", "b\tn", "c\to | m", "not there\tq", name="labels.tsv")
    images = read(tree, labels="csv", table=path, file_column="id", label_column="finding", separator="|")
    assert (images.classes, classes_of(images)) == (("m", "n", "o"), [["m", "n"], ["n"], ["m", "o"]])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file,label", "a,x", "b,y"], r"c\.png has no class in column 'label'"),
        (["file,label", "a,x"], r"2 files \(.*b\.png, .*c\.png\) have no class"),
        (["file,label", "a,x", "b,y", "c,"], r"c\.png has no class"),
        (["file,label", "a,x", "b,x", "c,x"], "all images are of the class 'x'"),
        (["name,label", "a,x"], "has no column 'file'; its columns are 'name', 'label'"),
        (["file,class", "a,x"], "has no column 'label'"),
        (["file;label", "a;x"], "its columns are 'file;label'"),
        (["file,label", "a,x", "b,y", "a,y"], "has two rows for 'a', lines 2 and 4; keep one"),
        (["file,label", "a,x", "b,y", "c,y", "ill/p1/a.png,x"], r"two rows for ill/p1/a.png: 'ill/p1/a.png' and 'a'"),
        (["file,label", "a,x", ",y"], "line 3 names no file"),
        (["file,label", 'a,"x', "b,y"], "is not CSV"),
        (["file,label"], "has no rows"),
        (["file,file,label", "a,b,x"], "two columns of the name"),
        ([""], "has no column 'file'"),
    ],
)
def test_tables_that_cannot_be_used(tree, tmp_path, read, lines, words):
    with pytest.raises(DataError, match=words):
        read(tree, labels="csv", table=table(tmp_path, *lines))


def test_tables_that_are_none(tree, tmp_path, read):
    with pytest.raises(DataError, match=r"none\.csv: cannot be opened"):
        read(tree, labels="csv", table=str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("file,label\na,Lähmung\n".encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.csv: is not UTF-8 text"):
        read(tree, labels="csv", table=str(tmp_path / "latin.csv"))


def test_a_name_that_two_files_have_needs_paths(tree, tmp_path, read):
    picture(tree / "well" / "p3" / "a.png")
    lines = ["file,label", "a,x", "b,y", "c,y"]
    with pytest.raises(DataError, match=r"its row for 'a' may mean ill/p1/a\.png or well/p3/a\.png; name files by"):
        read(tree, labels="csv", table=table(tmp_path, *lines))


def test_an_empty_class_among_several(tree, tmp_path, read):
    lines = ["file,label", "a,x|", "b,y", "c,y"]
    with pytest.raises(DataError, match=r"its classes are 'x\|' .* one of which is empty"):
        read(tree, labels="csv", table=table(tmp_path, *lines), separator="|")


def test_dicom_attributes(tmp_path, read):
    for i, part in enumerate(["CHEST", "HEAD ", "CHEST"]):
        (tmp_path / "scans").mkdir(exist_ok=True)
        make_dicom(tmp_path / "scans" / f"{i}.dcm", np.arange(144).reshape(12, 12) * (i + 1), BodyPartExamined=part)
    images = read(tmp_path / "scans", labels="dicom", tag="BodyPartExamined")
    assert classes_of(images) == [["CHEST"], ["HEAD"], ["CHEST"]]
    make_dicom(tmp_path / "scans" / "3.dcm", np.eye(12) * 9)
    with pytest.raises(DataError, match=r"3\.dcm has no class by Body Part Examined \(0018,0015\)"):
        read(tmp_path / "scans", labels="dicom", tag="BodyPartExamined")


@pytest.mark.parametrize("archives", [0, 2])
def test_chestxray_of_a_folder_and_of_a_store(tmp_path, read, archives):
    root = chestxray(tmp_path / "nih", [2, 1], archives=archives, size=32)
    path = root / "Data_Entry_2017.csv"
    found = iter(["Effusion|Mass", "No Finding", "Mass"])
    path.write_text("\n".join(line.replace("No Finding", next(found)) if "No Finding" in line else line
                              for line in path.read_text().splitlines()))  # fmt: skip
    expected = [["Effusion", "Mass"], ["No Finding"], ["Mass"]]
    if not archives:
        assert classes_of(read(root, labels="chestxray")) == expected
    data = DataConfig(str(root), size=8, min_foreground=0)
    prepare_store(chestxray_layout(root, data), data, tmp_path / "store", made_from={}, progress=False)
    with pytest.raises(DataError, match=r"store: holds no Data_Entry_2017\.csv"):
        read(tmp_path / "store", labels="chestxray")
    images = read(tmp_path / "store", labels="chestxray", table=str(path))
    assert (images.classes, classes_of(images)) == (("Effusion", "Mass", "No Finding"), expected)
    with pytest.raises(DataError, match="a store keeps no DICOM attributes"):
        read(tmp_path / "store", labels="dicom", tag="Modality")
    with pytest.raises(DataError, match="is a store, which does not keep the original image sizes"):
        read(tmp_path / "store", image=str(root))


def test_images_and_masks_of_one_name(tree, tmp_path, read):
    for name, value in {"ill/p1/a.png": 10, "ill/p2/b.bmp": 200, "well/p3/c.png": 90, "well/more.png": 0}.items():
        picture(tmp_path / "masks" / name, value)
    images = read(tree, image=str(tmp_path / "masks"))
    found = [float(images.condition(i)["condition_image"].mean()) for i in range(3)]
    assert found == pytest.approx([(v + 1 / 12) / 127.5 - 1 for v in (10, 200, 90)], abs=1e-2)
    assert list(images.condition(0)) == ["condition_image"]


def test_volumes_are_paired_slice_by_slice(tmp_path, read):
    """Label maps in the scan's own folder, with one intensity window for all."""
    rng = np.random.default_rng(0)
    for case in (1, 2):
        folder = tmp_path / "scans" / f"case{case}"
        folder.mkdir(parents=True)
        scan = rng.random((12, 12, 3)).astype(np.float32)
        labels = np.broadcast_to(np.arange(3, dtype=np.float32) + case - 1, scan.shape)
        for name, voxels in (("t1", scan), ("seg", labels)):
            nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 3, 1])), folder / f"case{case}_{name}.nii.gz")
    images = read(tmp_path / "scans", {"pattern": "*_t1.nii.gz"}, image=str(tmp_path / "scans"),
                  image_pattern="*_seg.nii.gz", image_window=(2, 4))  # fmt: skip
    values = [images.condition(i)["condition_image"].unique().tolist() for i in range(6)]
    assert values == [pytest.approx([v / 2 - 1], abs=1e-4) for v in (0, 1, 2, 1, 2, 3)]


def test_pairs_that_are_none(tree, tmp_path, read):
    masks = tmp_path / "masks"
    for name in ("ill/p1/a.png", "ill/p2/b.png"):
        picture(masks / name)
    with pytest.raises(DataError, match=r"an image has no condition image in .*masks: .*c\.png needs the one"):
        read(tree, image=str(masks))
    picture(masks / "well" / "p3" / "c.png", size=(12, 13))
    with pytest.raises(DataError, match=r"masks/well/p3/c\.png is 12 x 13 pixels, but its image, .*c\.png, is 12 x 12"):
        read(tree, image=str(masks))
    picture(masks / "well" / "p3" / "c.png")
    picture(masks / "well" / "p3" / "c.bmp")
    with pytest.raises(DataError, match=r"c\.bmp and .*c\.png are both the condition image of well/p3/c; remove one"):
        read(tree, image=str(masks))
    with pytest.raises(DataError, match="no such file or folder"):
        read(tree, image=str(tmp_path / "nowhere"))


def test_pixels_of_other_proportions(tmp_path, read):
    for name, spacing in (("scans", 1.0), ("masks", 1.5)):
        (tmp_path / name).mkdir()
        voxels = np.random.default_rng(0).random((12, 12, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1, spacing, 1, 1])), tmp_path / name / "a.nii")
    message = r"has a pixel aspect ratio of 1\.5, but its image, .* has 1; correct the spacing"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "scans", image=str(tmp_path / "masks"))


@pytest.mark.parametrize(
    ("name", "pattern", "part"),
    [("a/b.nii.gz", "*", "a/b"), ("a/b_t1.nii.gz", "*_t1.nii.gz", "a/b"), ("b.t1.png", "*", "b.t1"),
     ("t1/b.png", "t1/*", "b"), ("x/1.2.840.113", "*", "x/1.2.840.113"), ("a1.png", "a?.png", "a1")],
)  # fmt: skip
def test_the_part_of_a_name_that_varies(name, pattern, part):
    assert varying_part(name, pattern) == part


def test_checksums_distinguish_classes_and_masks(tree, tmp_path, read):
    rows = ["file,label", "a,x", "b,y", "c,y"]
    before = read(tree, labels="csv", table=table(tmp_path, *rows)).checksums()
    after = read(tree, labels="csv", table=table(tmp_path, *rows[:2], "b,x", "c,y")).checksums()
    assert (before != after).tolist() == [False, True, False]
    for name in ("ill/p1/a.png", "ill/p2/b.png", "well/p3/c.png"):
        picture(tmp_path / "masks" / name)
    before = read(tree, image=str(tmp_path / "masks")).checksums()
    picture(tmp_path / "masks" / "well/p3/c.png", 9)
    assert (before != read(tree, image=str(tmp_path / "masks")).checksums()).tolist() == [False, False, True]
